"""Corpora on disk: passages by place and by name, memory-mapped."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from bgetrain.data.arrow import beside, cached
from bgetrain.data.files import COMPRESSIONS, Line, lines, parquet
from bgetrain.sources import Rows

NAMES = ("_id", "docid")  # of a passage: BEIR's and Tevatron's
BLOCK = 16_384  # names or rows that are in memory at a time
SUFFIXES = (".parquet", ".json", ".jsonl", *(f".jsonl{suffix}" for suffix in COMPRESSIONS))


class ArrowPassages:
    """A corpus in an Arrow file.

    The places of names are found in a sorted array of the names' hashes, which is made once (24 bytes a passage while it
    is made) and mapped like the texts, so that the ranks of one machine share the pages.

    Args:
        table: of `cached`, with columns `name` and `text`.
        paths: what the table was read from, for messages.

    Raises:
        ValueError: a name stands there twice; says where.
    """

    def __init__(self, table: Any, paths: Sequence[str]) -> None:
        self.table, self.paths = table, paths
        self.columns = {name: table.select_columns([name]) for name in ("name", "text")}
        self.index = beside(table, "names", self.make_index)  # uint64 [2, C]: hashes, rising, and their places

    def __len__(self) -> int:
        return len(self.table)

    def take(self, places: Sequence[int] | np.ndarray) -> list[str]:
        return self.read("text", places)

    def names(self, places: Sequence[int] | np.ndarray) -> list[str]:
        return self.read("name", places)

    def read(self, column: str, places: Sequence[int] | np.ndarray) -> list[str]:
        """A column at `places`; a range is read in one piece."""
        if not len(places):
            return []
        if isinstance(places, range) and places.step == 1:
            return list(self.columns[column][places.start : places.stop][column])
        return list(self.columns[column][[int(place) for place in places]][column])

    def find(self, names: Sequence[str]) -> np.ndarray:
        """int64 [n], the places of these names, -1 where there is none; names are compared where hashes agree."""
        keys = hashes(names)
        starts, ends = (np.searchsorted(self.index[0], keys, side) for side in ("left", "right"))
        found = np.full(len(names), -1, np.int64)
        ahead = np.flatnonzero(starts < ends)
        while len(ahead):
            places = self.index[1, starts[ahead]].astype(np.int64)
            same = np.array([names[at] == name for at, name in zip(ahead.tolist(), self.names(places), strict=True)])
            found[ahead[same]] = places[same]
            starts[ahead] += 1
            ahead = ahead[~same & (starts[ahead] < ends[ahead])]
        return found

    def make_index(self) -> np.ndarray:
        blocks = [hashes(self.names(block)) for block in in_blocks(len(self))]
        keys = np.concatenate(blocks)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for one in np.flatnonzero(keys[1:] == keys[:-1]):
            # all of one hash: names of their own may share it
            same = order[one : np.searchsorted(keys, keys[one], "right")]
            listed = self.names(same)
            if listed[0] in listed[1:]:
                raise twice(self.paths, listed[0])
        return np.stack([keys, order.astype(np.uint64)])


def hashes(names: Sequence[str]) -> np.ndarray:
    """uint64 [n], of each name."""
    return np.frombuffer(b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names), np.uint64)


def in_blocks(total: int) -> Iterator[range]:
    for start in range(0, total, BLOCK):
        yield range(start, min(start + BLOCK, total))


def open_passages(path: str) -> ArrowPassages:
    """Opens a corpus of passages `{"_id" or "docid", "title", "text"}`; titles may be absent.

    Args:
        path: `.jsonl`, plain or compressed, `.json` or `.parquet`, or a folder that holds such files alone.

    Raises:
        ValueError: there is no such file, a line is malformed, a name stands twice, or there is no passage.
    """
    found = Path(path).expanduser()
    files = sorted(each for each in found.iterdir() if each.name.endswith(SUFFIXES)) if found.is_dir() else [found]
    if not files or not files[0].is_file():
        raise ValueError(f"{path}: must be a corpus file ({', '.join(SUFFIXES)}) or a folder of such")
    return read_passages([str(each) for each in files])


def read_passages(paths: list[str]) -> ArrowPassages:
    """The passages of several files, one after the other; see `open_passages`."""
    return ArrowPassages(cached(passages, paths, None, {}, features()), paths)


def features() -> Any:
    from datasets import Features, Value

    return Features({"name": Value("large_string"), "text": Value("large_string")})


def passages(paths: Sequence[str], origin: None, columns: dict[str, str]) -> Iterator[dict[str, str]]:
    """Each passage's name and `(title + " " + text).strip()`."""
    value = None
    for value, where in objects(paths):
        title, text = value.get("title") or "", value.get("text")
        if not isinstance(text, str) or not isinstance(title, str):
            raise ValueError(f"{where}: 'text' must be a text and 'title' a text or absent")
        yield {"name": identity(value, where), "text": f"{title} {text}".strip()}
    if value is None:
        raise ValueError(f"{', '.join(paths)}: no passages in it")


def objects(paths: Sequence[str]) -> Iterator[Line]:
    for path in map(Path, paths):
        yield from parquet(path) if path.suffix == ".parquet" else lines(path)


def identity(value: dict[str, Any], where: str) -> str:
    """The name of a passage or a query.

    Raises:
        ValueError: it has none.
    """
    name = next((value[key] for key in NAMES if value.get(key) is not None), "")
    if not isinstance(name, str | int) or name == "":
        raise ValueError(f"{where}: has no '_id'")
    return str(name)


def twice(paths: Sequence[str], name: str) -> ValueError:
    """Looks in the sources where a name stands; this is slow, and the last thing that a run does."""
    places = [where for value, where in objects(paths) if identity(value, where) == name]
    return ValueError(f"{places[1]}: '_id' {name!r} is that of {places[0]} too: give each passage an '_id' of its own")


def distinct(rows: Rows, table: Any) -> tuple[ArrowPassages, np.ndarray]:
    """All passages of labelled rows, each text once, in order of their first occurrence.

    Equal texts are found by hashes of 128 bits.

    Args:
        rows: labelled queries.
        table: the `store.Store` that the rows are read from.

    Returns:
        The passages, named p0, p1, ...
        int64, of each positive and then each negative of each row in turn, the place of its text; memory-mapped.
    """
    places = beside(table, "places", lambda: places_of_texts(rows))

    def distinct_passages(paths: Sequence[str], origin: dict[str, Any], columns: dict[str, str]) -> Iterator[dict[str, str]]:
        first = count = 0
        for block in in_blocks(len(rows)):
            texts = [text for row in rows.take(block) for text in (*row.positives, *row.negatives)]
            for place, text in zip(places[first : first + len(texts)].tolist(), texts, strict=True):
                if place == count:  # places rise by one at each text that has not come before
                    yield {"name": f"p{count}", "text": text}
                    count += 1
            first += len(texts)

    made = cached(distinct_passages, [], {"rows": table.folder.name}, {}, features())
    return ArrowPassages(made, []), places


def places_of_texts(rows: Rows) -> np.ndarray:
    """As `distinct` returns them; 60 bytes an occurrence while it is made."""
    digests = []
    for block in in_blocks(len(rows)):
        texts = (text for row in rows.take(block) for text in (*row.positives, *row.negatives))
        digests.append(b"".join(blake2b(text.encode(), digest_size=16).digest() for text in texts))
    keys = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    order = np.lexsort(keys.T)  # stable: of equal keys the first occurrence comes first
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    by_first = np.argsort(order[new])
    place_of_group = np.empty(len(by_first), np.int64)
    place_of_group[by_first] = np.arange(len(by_first))
    places = np.empty(len(keys), np.int64)
    places[order] = place_of_group[np.cumsum(new) - 1]
    return places
