"""Equal rows among any number of rows: 32 bytes a row on disk, a 64th of them in memory at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# 64 bits: of 230 million rows two differing ones share a hash with a chance of 0.15 %
RECORD = np.dtype([("query", "u8"), ("positives", "u8"), ("row", "u8"), ("place", "u8")])
BUCKETS = 64
HELD = 1 << 16  # records in memory before they are written


class Spill:
    """Records of one worker, in files by their query's hash, so that equal queries of all workers meet.

    Args:
        folder: receives the files.
        part: number of the worker.
    """

    def __init__(self, folder: Path, part: int) -> None:
        self.folder, self.part = folder, part
        self.held: list[tuple[int, int, int, int]] = []

    def add(self, query: int, positives: int, row: int, place: int) -> None:
        self.held.append((query, positives, row, place))
        if len(self.held) >= HELD:
            self.flush()

    def flush(self) -> None:
        records = np.array(self.held, RECORD)
        self.held = []
        buckets = records["query"] % BUCKETS
        order = np.argsort(buckets, kind="stable")
        ends = np.searchsorted(buckets[order], np.arange(1, BUCKETS))
        for bucket, found in enumerate(np.split(records[order], ends)):
            if len(found):
                with (self.folder / f"rows-{bucket}-{self.part}").open("ab") as file:
                    file.write(found.tobytes())


class Repeats(NamedTuple):
    """Rows that repeat an earlier one.

    Attributes:
        places: uint64 [R], of the repeats, sorted.
        originals: uint64 [R], where each stands first.
    """

    places: np.ndarray
    originals: np.ndarray


def buckets(folder: Path) -> Iterator[np.ndarray]:
    """The records of all workers, bucket by bucket."""
    for bucket in range(BUCKETS):
        found = [np.fromfile(path, RECORD) for path in sorted(folder.glob(f"rows-{bucket}-*"))]
        if found:
            yield np.concatenate(found)


def equal_rows(records: np.ndarray) -> Repeats:
    """Rows of one bucket that are in all the same as an earlier one."""
    return repeats(records, ("query", "row"))


def equal_queries(records: np.ndarray) -> Repeats:
    """Rows of one bucket whose query stands in an earlier row with other positives; of equal pairs the first alone."""
    order = np.lexsort((records["place"], records["positives"], records["query"]))
    ordered = records[order]
    return repeats(ordered[begins(ordered, ("query", "positives"))], ("query",))


def repeats(records: np.ndarray, names: Sequence[str]) -> Repeats:
    """All but the first, by place, of the records that agree in these fields."""
    ordered = records[np.lexsort((records["place"], *(records[name] for name in reversed(names))))]
    begin = begins(ordered, names)
    originals = ordered["place"][begin][np.cumsum(begin) - 1]
    places, originals = ordered["place"][~begin], originals[~begin]
    by_place = np.argsort(places, kind="stable")
    return Repeats(places[by_place], originals[by_place])


def begins(ordered: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """bool [N]: whether a record differs from the one before it in one of these fields."""
    new = np.ones(len(ordered), bool)
    if len(ordered):
        new[1:] = np.logical_or.reduce([ordered[name][1:] != ordered[name][:-1] for name in names])
    return new
