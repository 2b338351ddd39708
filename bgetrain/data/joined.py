"""Passages to be searched: those of corpora, of labelled rows, of plain texts, and of several of these as one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bgetrain.data.arrow import beside
from bgetrain.data.passages import ArrowPassages, distinct, in_blocks
from bgetrain.sources import Corpus, Rows, Texts


class Joined:
    """Several lists of texts, one after the other."""

    def __init__(self, parts: Sequence[Texts]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, indices: Sequence[int]) -> list[str]:
        found: list[str] = [""] * len(indices)
        for at, part, inside in parted(self.starts, indices):
            for place, text in zip(at.tolist(), self.parts[part].take(inside), strict=True):
                found[place] = text
        return found


def parted(starts: np.ndarray, indices: Sequence[int]) -> list[tuple[np.ndarray, int, Sequence[int]]]:
    """Which of `indices` lie in each part: their places among `indices`, the part, and their places in it."""
    places = np.asarray(indices, np.int64)
    owners = np.searchsorted(starts, places, "right") - 1
    found: list[tuple[np.ndarray, int, Sequence[int]]] = []
    for part in np.unique(owners).tolist():
        at = np.flatnonzero(owners == part)
        inside = (places[at] - starts[part]).tolist()
        whole = inside[-1] - inside[0] + 1 == len(inside) and isinstance(indices, range)
        found.append((at, part, range(inside[0], inside[-1] + 1) if whole else inside))  # a range is read in one piece
    return found


def joined(corpora: Sequence[Corpus]) -> Corpus:
    """Several corpora as one."""
    texts = Joined([each.passages for each in corpora])

    def where(places: Sequence[int]) -> list[str]:
        found = [""] * len(places)
        for at, part, inside in parted(texts.starts, places):
            for place, name in zip(at.tolist(), corpora[part].where(inside), strict=True):
                found[place] = name
        return found

    return Corpus(texts, where, " ".join(each.key for each in corpora))


def searchable(passages: ArrowPassages, named: Callable[[str], str] = str) -> Corpus:
    """The passages of a corpus under their names.

    Args:
        passages: of `read_passages`.
        named: name -> what is shown of it.
    """
    key = passages.table.cache_files[0]["filename"]
    return Corpus(passages, lambda places: [named(each) for each in passages.names(places)], key)


def of_texts(open_texts: Callable[[], Texts], key: Callable[[], str]) -> Corpus:
    """Plain texts, which are known by their number alone; the key is asked for when they are open."""
    texts = open_texts()
    return Corpus(texts, lambda places: [f"text {place + 1:,}" for place in places], key())


def of_rows(rows: Rows, table: Any) -> Corpus:
    """All passages of labelled rows, each text once, where it first stands.

    Args:
        rows: labelled queries.
        table: the `store.Store` that they are read from.
    """
    passages, occurrences = distinct(rows, table)
    ends = beside(table, "ends", lambda: ends_of(rows))

    def where(places: Sequence[int]) -> list[str]:
        first = [int(np.argmax(occurrences == place)) for place in places]
        return [rows.where(int(row)) for row in np.searchsorted(ends, first, "right")]

    return Corpus(passages, where, f"passages of {table.folder}")


def ends_of(rows: Rows) -> np.ndarray:
    """int64, of each row the number of passages up to its end."""
    counts = [len(row.positives) + len(row.negatives) for block in in_blocks(len(rows)) for row in rows.take(block)]
    return np.cumsum(counts, dtype=np.int64)
