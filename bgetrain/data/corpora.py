"""Rows that name their passages by id, given the passages' texts from a corpus."""

from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from bgetrain.data.files import RowError
from bgetrain.data.passages import open_passages
from bgetrain.data.records import Judged
from bgetrain.sources import Passages

ROWS = 1024  # whose ids are looked up together
SIDES = (("pos", "passage"), ("neg", "negative"))


def corpus_file(path: str) -> str:
    """`corpus.jsonl[.gz]` of a folder in BEIR layout; of what else the path itself."""
    folder = Path(path).expanduser()
    return str(next((folder / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (folder / name).is_file()), folder))


@cache
def opened(path: str) -> Passages:
    return open_passages(corpus_file(path))


def with_passages(rows: Iterator[Judged], corpus: str) -> Iterator[Judged]:
    """The same rows with texts for ids; a row with an id that the corpus lacks cannot be used."""
    while block := list(islice(rows, ROWS)):
        yield from resolved(block, opened(corpus), corpus)


def resolved(block: list[Judged], passages: Passages, corpus: str) -> Iterator[Judged]:
    names = sorted({name for row in block if row.record for side, _ in SIDES for name in row.record[side]})
    places = passages.find(names)
    known = places >= 0
    there = [name for name, found in zip(names, known, strict=True) if found]
    texts = dict(zip(there, passages.take(places[known].tolist()), strict=True))
    for row in block:
        if row.record is None:
            yield row
            continue
        try:
            yield row._replace(
                record={**row.record, **{side: looked_up(row.record[side], texts, noun, corpus) for side, noun in SIDES}}
            )
        except RowError as error:
            yield row._replace(record=None, error=error)


def looked_up(names: list[str], texts: dict[str, Any], noun: str, corpus: str) -> list[str]:
    for name in names:
        if name not in texts:
            raise RowError(f"unknown_{noun}", f"data.corpus={corpus} has no passage {name!r}")
        if not texts[name]:
            raise RowError(f"empty_{noun}", f"passage {name!r} of data.corpus={corpus} is empty")
    return [texts[name] for name in names]
