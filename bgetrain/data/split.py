"""Labelled rows parted in those to train on and a retrieval set to evaluate on, without a query in both."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from bgetrain.sources import Row, Rows
from bgetrain.types import NonNegativeInt, PositiveInt, Ratio

BLOCK = 4096  # rows in memory at a time


class Parted(NamedTuple):
    """What became of the rows.

    Attributes:
        train_rows: lines of `train.jsonl`.
        queries: different ones of the evaluation set.
        passages: different ones of all rows, its corpus.
        prompts: of rows of the evaluation set, which its layout has no place for.
    """

    train_rows: int
    queries: int
    passages: int
    prompts: int


def split(rows: Rows, folder: Path, seed: NonNegativeInt, *, test_ratio: Ratio, test_queries: PositiveInt) -> Parted:
    """Writes `train.jsonl`, and a folder in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`.

    The corpus are the passages of all rows, those of training and negatives too, so that the search is no easier than in
    use. Queries are chosen by a hash of seed and text: all rows of a query go to one side, and rows that are added later
    leave the side of the others nearly as it was.

    Args:
        rows: all of them; 24 bytes a different query and about 100 a different passage are kept in memory.
        folder: is there.
        seed: of the choice.
        test_ratio: part of the different queries that is kept for evaluation, one at least.
        test_queries: the most that are.

    Raises:
        ValueError: fewer than two different queries, or a `test_ratio` that leaves none to train on.
    """
    hashes = np.fromiter((hashed(row.query, seed) for row in read(rows)), np.uint64, len(rows))
    different = np.unique(hashes)
    count = min(max(1, round(test_ratio * len(different))), test_queries)
    if count >= len(different):
        raise ValueError(
            f"split.test_ratio={test_ratio} and split.test_queries={test_queries} keep {count:,} of {len(different):,} "
            f"different queries for evaluation and leave none to train on: there must be two, and test_ratio below 1"
        )
    held = hashes <= different[count - 1]
    with contextlib.ExitStack() as stack:
        train, corpus, queries, qrels = (
            stack.enter_context(whole(folder / name))
            for name in ("train.jsonl", "corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
        )
        qrels.write("query-id\tcorpus-id\tscore\n")
        passages, asked, pairs = Numbers(), Numbers(), set()
        prompts = 0
        for row, is_held in zip(read(rows), held.tolist(), strict=True):
            places = []
            for text in [*row.positives, *row.negatives]:
                place, new = passages.of(text)
                places.append(place)
                if new:
                    corpus.write(line({"_id": f"p{place}", "title": "", "text": text}))
            if not is_held:
                train.write(line(as_read(row)))
                continue
            number, new = asked.of(row.query)
            if new:
                queries.write(line({"_id": f"q{number}", "text": row.query}))
            prompts += row.prompt is not None
            for place in places[: len(row.positives)]:
                if (number, place) not in pairs:
                    qrels.write(f"q{number}\tp{place}\t1\n")
                    pairs.add((number, place))
    return Parted(int((~held).sum()), len(asked.known), len(passages.known), prompts)


class Numbers:
    """Texts numbered in the order in which they come, known by their hash."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}

    def of(self, text: str) -> tuple[int, bool]:
        """The number of a text, and whether it is new."""
        key, count = blake2b(text.encode(), digest_size=16).digest(), len(self.known)
        number = self.known.setdefault(key, count)
        return number, len(self.known) > count


def hashed(query: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed}\n{query}".encode(), digest_size=8).digest(), "big")


def read(rows: Rows) -> Iterator[Row]:
    for start in range(0, len(rows), BLOCK):
        yield from rows.take(range(start, min(start + BLOCK, len(rows))))


def as_read(row: Row) -> dict[str, Any]:
    """The row under the names that data=jsonl reads."""
    given: dict[str, str | Sequence[Any] | None] = {
        "query": row.query,
        "pos": list(row.positives),
        "neg": list(row.negatives) or None,
        "prompt": row.prompt,
        "pos_scores": row.positive_scores,
        "neg_scores": row.negative_scores,
    }
    return {name: value for name, value in given.items() if value is not None}


def line(value: dict[str, Any]) -> str:
    return f"{json.dumps(value, ensure_ascii=False)}\n"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """A file to write that takes its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with beside.open("w", encoding="utf8") as handle:
        yield handle
    beside.replace(path)
