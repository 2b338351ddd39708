"""Retrieval sets: folders in BEIR layout (Thakur et al. 2021, arXiv:2104.08663), and this machine's Python as one."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bgetrain.data import rows as row_files
from bgetrain.data.arrow import beside
from bgetrain.data.columns import brief
from bgetrain.data.files import either, existing, lines, numbered
from bgetrain.data.folders import sets_of
from bgetrain.data.joined import joined, searchable
from bgetrain.data.mixture import combined
from bgetrain.data.passages import ArrowPassages, identity, in_blocks, read_passages
from bgetrain.data.pydocs import harvest, installed
from bgetrain.data.records import Reading
from bgetrain.sources import Mix, Part, Retrieval, Row, Source, Texts
from bgetrain.types import MissingNegatives, PositiveInt

SPLITS = ("train", "dev", "test")  # of a harvest


def beir(
    path: str | list[str],
    *,
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    missing_negatives: MissingNegatives,
    split: str,
) -> Source:
    """Opens folders with `corpus.jsonl[.gz]`, `queries.jsonl[.gz]` and `qrels/SPLIT.tsv`, several as a mixture.

    To be searched, the first of these files is enough.

    Training rows are the relevant pairs of `qrels/SPLIT.tsv`, texts for pre-training the corpus.

    Args:
        path: the folder, a pattern such as `BEIR/*`, or a list of both; `folders.sets_of` says what they find.
        query_max_len: tokens of a query, special tokens included.
        passage_max_len: the same for passages.
        query_instruction: put before every query.
        missing_negatives: what to do where group_size > 1, since qrels name no negatives.
        split: which qrels are read.

    Raises:
        ValueError: the folder or its corpus is missing.
    """
    found = sets_of(path)
    made = [
        Part(name, beir_folder(each, query_max_len, passage_max_len, query_instruction, missing_negatives, split))
        for name, each in found.items()
    ]
    if len(made) == 1:
        return made[0].source
    # drawn by size, as a mixture is by default
    return combined(f"data=beir data.path={path}", Mix(made, "source", 1.0), split, missing_negatives)


def beir_folder(
    path: Path,
    query_max_len: int,
    passage_max_len: int,
    query_instruction: str,
    missing_negatives: str,
    split: str,
) -> Source:
    """One folder; the arguments are those of `beir`."""
    folder = existing(str(path), "data.path")
    queries = [each for each in (folder / "queries.jsonl", folder / "queries.jsonl.gz") if each.is_file()][:1]
    files = [either(folder, "corpus.jsonl"), *queries, *sorted(folder.glob("qrels/*.tsv"))]
    return Source(
        f"data=beir data.path={path}",
        lambda: CorpusTexts(corpus_of(folder)),
        lambda: BeirRows(folder, split),
        lambda name: read_beir(folder, name),
        [str(each) for each in files],
        split,
        query_max_len,
        passage_max_len,
        query_instruction,
        missing_negatives,
        corpus=lambda: searchable(corpus_of(folder)),
    )


def pydocs(
    *,
    packages: list[str] | None,
    max_files: PositiveInt,
    max_rows: PositiveInt,
    max_characters: PositiveInt,
    num_workers: PositiveInt,
    cache: str,
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    missing_negatives: MissingNegatives,
    split: str,
) -> Source:
    """Opens the Python of this machine as a retrieval set, harvesting it the first time.

    Args:
        packages: top-level modules to read; None: the standard library and all that is installed.
        max_files: cap on files read.
        max_rows: cap on pairs kept.
        max_characters: of a passage; longer ones are cut.
        num_workers: processes that parse.
        cache: folder where harvests are kept.
        others: as for `beir`.
    """
    folder = harvest(
        Path(cache).expanduser() / "pydocs",
        packages=packages,
        max_files=max_files,
        max_rows=max_rows,
        max_characters=max_characters,
        num_workers=num_workers,
    )
    reading = Reading("texts", [str(folder / "train" / "texts.jsonl")], None, {})
    texts: Callable[[], Texts] = row_files.ArrowTexts(reading, "stop").open
    return Source(
        "data=pydocs",
        texts,
        lambda: BeirRows(split_folder(folder, split), split),
        lambda name: read_beir(split_folder(folder, name), name),
        [str(each) for each in sorted(folder.rglob("*.*")) if each.name != "harvest.json"],
        split,
        query_max_len,
        passage_max_len,
        query_instruction,
        missing_negatives,
        corpus=lambda: joined([searchable(corpus_of(folder / each), installed) for each in SPLITS]),
    )


def split_folder(folder: Path, split: str) -> Path:
    if split not in SPLITS:
        raise ValueError(f"data.split must be train, dev or test, got {split!r}")
    return folder / split


class CorpusTexts:
    """The passages of a corpus that have text."""

    def __init__(self, passages: ArrowPassages) -> None:
        self.passages = passages
        self.places = beside(passages.table, "filled", lambda: filled(passages))

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: Sequence[int]) -> list[str]:
        return self.passages.take(self.places[np.asarray(indices, np.int64)])


def filled(passages: ArrowPassages) -> np.ndarray:
    """int64, the places of the passages that are not empty."""
    found = [
        np.array([place for place, text in zip(block, passages.take(block), strict=True) if text], np.int64)
        for block in in_blocks(len(passages))
    ]
    return np.concatenate(found)


class BeirRows:
    """The queries of one split with their relevant passages, which stay on disk.

    Attributes:
        notes: what the qrels name and the corpus has not.

    Raises:
        ValueError: the split has no query with a passage that the corpus holds.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.passages, queries, qrels = corpus_of(folder), read_queries(folder), read_qrels(folder, split)
        relevant = self.passages.find([name for listed, _ in qrels.values() for name in listed])
        full = relevant >= 0
        for block in in_blocks(len(relevant)):
            held = np.flatnonzero(full[block.start : block.stop]) + block.start
            full[held] = [bool(text) for text in self.passages.take(relevant[held])]
        self.queries: list[str] = []
        self.wheres: list[str] = []
        self.relevant: list[np.ndarray] = []
        self.notes: list[str] = []
        first, left_out = 0, []
        for query_id, (listed, where) in qrels.items():
            part = slice(first, first + len(listed))
            first = part.stop
            left_out += [f"{where}: {listed_name!r}" for listed_name, has in zip(listed, full[part], strict=True) if not has]
            if full[part].any():
                self.queries.append(known_query(queries, query_id, where))
                self.wheres.append(where)
                self.relevant.append(relevant[part][full[part]])
        if not self.queries:
            raise ValueError(f"{folder}/qrels/{split}.tsv: no query of it has a passage that the corpus holds")
        if left_out:
            what = "relevant passages left out, which the corpus lacks or has without text"
            self.notes.append(f"{folder}/qrels/{split}.tsv: {len(left_out):,} {what}, e.g. of the query of {left_out[0]}")

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, indices: Sequence[int]) -> list[Row]:
        texts = iter(self.passages.take([place for index in indices for place in self.relevant[index]]))
        return [Row(self.queries[index], [next(texts) for _ in self.relevant[index]], [], None) for index in indices]

    def where(self, index: int) -> str:
        return self.wheres[index]


def corpus_of(folder: Path) -> ArrowPassages:
    return read_passages([str(either(folder, "corpus.jsonl"))])


def read_beir(folder: Path, split: str) -> Retrieval:
    """Opens the corpus and reads the queries of one split.

    Raises:
        ValueError: a malformed line, an empty set, a query in the qrels that `queries.jsonl` lacks.
    """
    passages, queries = corpus_of(folder), read_queries(folder)
    qrels = read_qrels(folder, split)
    texts = [known_query(queries, query_id, where) for query_id, (_, where) in qrels.items()]
    relevant = {query_id: listed for query_id, (listed, _) in qrels.items()}
    return Retrieval(passages, list(qrels), texts, [None] * len(texts), relevant)


def known_query(queries: dict[str, str], query_id: str, where: str) -> str:
    if query_id not in queries:
        raise ValueError(f"{where}: query {query_id!r} is not in queries.jsonl")
    return queries[query_id]


def read_queries(folder: Path) -> dict[str, str]:
    """Query name -> text."""
    found = {}
    path = either(folder, "queries.jsonl")
    for value, where in lines(path):
        text = value.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: 'text' of a query must be a text that is not empty, got {brief(text)}")
        found[identity(value, where)] = text
    if not found:
        raise ValueError(f"{path}: no queries in it")
    return found


def read_qrels(folder: Path, split: str) -> dict[str, tuple[dict[str, int], str]]:
    """Query name -> (passage name -> relevance above 0, `FILE:LINE` of the first).

    Raises:
        ValueError: no such split, a line that is not `query-id<TAB>corpus-id<TAB>score`, no relevant pair.
    """
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob("qrels/*.tsv"))) or "none"
        raise ValueError(f"{path}: no such file; the splits in {folder / 'qrels'} are: {known}")
    found: dict[str, tuple[dict[str, int], str]] = {}
    for number, line in numbered(path):
        cells = line.strip().split("\t")
        if not line.strip() or (number == 1 and cells[-1] == "score"):
            continue
        if len(cells) != 3 or not re.fullmatch(r"-?[0-9]{1,9}", cells[2]):
            what = "query-id, corpus-id and a whole number with tabs between"
            raise ValueError(f"{path}:{number}: must be {what}, got {line.strip()[:80]!r}")
        if int(cells[2]) > 0:
            found.setdefault(cells[0], ({}, f"{path}:{number}"))[0][cells[1]] = int(cells[2])
    if not found:
        raise ValueError(f"{path}: no relevant pair in it")
    return found
