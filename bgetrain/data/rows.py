"""Labelled rows and texts from files and the hub under one column map, judged once and then memory-mapped as Arrow."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bgetrain.data.columns import ROW_COLUMNS, TEXT_COLUMNS, check_columns, check_labels
from bgetrain.data.joined import of_rows, of_texts
from bgetrain.data.make import make, scan
from bgetrain.data.passages import distinct, in_blocks
from bgetrain.data.paths import checked_corpus, corpus_files, folder_files, named_files, saved_files
from bgetrain.data.records import Reading
from bgetrain.data.store import Store
from bgetrain.sources import Retrieval, Row, Rows, Source
from bgetrain.types import Column, MissingNegatives, OnBadRow, PositiveInt

LOOKED_AT = 1000  # rows, for a column that nobody has
FORMAT = 4  # of the cache; a change makes old ones unused


def jsonl(
    files: list[str],
    *,
    columns: dict[str, Column],
    labels: dict[str, Any] | None,
    corpus: str | None,
    on_bad_row: OnBadRow,
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    missing_negatives: MissingNegatives,
    split: str,
) -> Source:
    """Opens files of rows `{"query", "pos", "neg", "prompt", "pos_scores", "neg_scores"}`, FlagEmbedding's format.

    All but `query` and `pos` are optional. A passage may be a text or an object with `title` and `text`, as Tevatron has it.

    Args:
        files: `.jsonl` or `.json` (lines), plain or `.gz`, `.bz2`, `.xz`, `.zst`, `.lz4`; `.parquet`; `.arrow`; folders that
            `datasets` saved to disk. Patterns such as `parts/*.jsonl` are expanded.
        columns: our name -> theirs: a column, a path into objects and lists such as `answers.text` or `set.0`, a whole number
            where lines are lists, or a list of these: for `pos` and `neg` all of them, for `query` joined by a space.
        labels: `{column: label, pos: [1], neg: [0]}`: each row is a query and one passage (that of `pos`), and its label
            says which it is; rows of one query become one. None: rows have no labels.
        corpus: `pos` and `neg` hold ids of its passages `{"docid" or "_id", "title", "text"}`: jsonl, parquet or a folder in
            BEIR layout. None: they hold the passages.
        on_bad_row: stop at the first row that cannot be used | skip: leave such rows out and say so.
        query_max_len: tokens of a query, special tokens included.
        passage_max_len: the same for passages.
        query_instruction: put before a query whose row has no `prompt`.
        missing_negatives: what to do with rows without `neg` where group_size > 1.
        split: of folders that `datasets` saved with several; for other files a name for messages, they hold one split.

    Raises:
        ValueError: a file is missing, or `columns` or `labels` are not of the form above.
    """
    check_columns(columns, ROW_COLUMNS)
    check_labels(labels)
    paths = named_files(files, split)
    reading = Reading("rows", paths, None, dict(columns), labels, checked_corpus(corpus))
    limits = (split, query_max_len, passage_max_len, query_instruction, missing_negatives)
    return source_of("data=jsonl", reading, on_bad_row, paths, limits)


def text(
    files: list[str],
    *,
    columns: dict[str, Column],
    on_bad_row: OnBadRow,
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    split: str,
) -> Source:
    """Opens files of texts `{"text": str}` for pre-training; arguments as for `jsonl`, several columns joined by a space."""
    check_columns(columns, TEXT_COLUMNS)
    paths = named_files(files, split)
    limits = (split, query_max_len, passage_max_len, query_instruction, "refuse")
    return source_of("data=text", Reading("texts", paths, None, dict(columns)), on_bad_row, paths, limits)


def hub(
    path: str,
    *,
    config: str | None,
    revision: str | None,
    files: str | None,
    columns: dict[str, Column],
    labels: dict[str, Any] | None,
    corpus: str | None,
    on_bad_row: OnBadRow,
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    missing_negatives: MissingNegatives,
    split: str,
) -> Source:
    """Opens a data set of the Hugging Face hub, or a local folder that holds the same files or that `datasets` saved.

    Args:
        path: hub id, or a folder.
        config: the set's configuration; None: its only one.
        revision: branch, tag or commit of the hub's repository; None: the newest. Folders have none.
        files: pattern of the files in it to read, e.g. `gooaq_pairs.jsonl.gz`, whatever else stands there, a script too; None:
            those that the set names for the split.
        columns: our name -> theirs; with `text` among ours the set is one of texts, else of labelled rows.
        others: as for `jsonl`.
    """
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    limits = (split, query_max_len, passage_max_len, query_instruction, missing_negatives)
    kind: Literal["rows", "texts"] = "texts" if "text" in columns else "rows"
    check_columns(columns, TEXT_COLUMNS if kind == "texts" else ROW_COLUMNS)
    check_labels(labels)
    saved = saved_files(Path(path), split)
    paths = saved or folder_files(Path(path))
    origin = {"path": path, "config": config, "revision": revision, "split": split, "files": files, "columns": sorted(columns)}
    reading = Reading(kind, paths, None if saved else origin, dict(columns), labels, checked_corpus(corpus))
    return source_of(f"data={path}", reading, on_bad_row, paths, limits)


def source_of(
    name: str, reading: Reading, on_bad_row: OnBadRow, paths: list[str], limits: tuple[str, int, int, str, str]
) -> Source:
    """The parts of a source that its rows or texts serve as."""
    if reading.kind == "texts":
        texts = ArrowTexts(reading, on_bad_row)
        numbered = partial(of_texts, texts.open, lambda: f"texts of {texts.store.folder}")
        return Source(name, texts.open, None, None, paths, *limits, partial(scan, reading), corpus=numbered)
    rows = ArrowRows(reading, on_bad_row)
    return Source(
        name,
        lambda: RowTexts(rows.open()),
        rows.open,
        partial(of_split, name, limits[0], lambda: as_retrieval(rows.open())),
        paths,
        *limits,
        partial(scan, reading),
        corpus=lambda: of_rows(rows.open(), rows.store),
    )


def of_split(name: str, split: str, opened: Callable[[], Retrieval], asked: str) -> Retrieval:
    """The retrieval set of rows that are those of one split.

    Raises:
        ValueError: another split is asked for.
    """
    if asked != split:
        raise ValueError(f"{name} has no split {asked!r}: its rows are of split {split!r}")
    return opened()


class ArrowRows:
    """Labelled rows in Arrow files; `open` reads and judges the sources the first time.

    Attributes:
        notes: after `open`, what was left out of the sources and what is odd in them, line by line; told every time.
    """

    def __init__(self, reading: Reading, on_bad_row: OnBadRow) -> None:
        self.reading, self.on_bad_row = reading, on_bad_row
        self.store: Any = None
        self.notes: list[str] = []

    def open(self) -> "ArrowRows":
        if self.store is None:
            self.store = cached(self.reading, self.on_bad_row)
            self.notes = [*noted(self.reading, self.store), *unmet(self.reading, self.store)]
        return self

    def __len__(self) -> int:
        return len(self.store)

    def take(self, indices: Sequence[int]) -> list[Row]:
        columns = self.store.take(indices, ROW_COLUMNS)
        return [
            Row(query, positives, negatives or [], *more) for query, positives, negatives, *more in zip(*columns, strict=True)
        ]

    def where(self, index: int) -> str:
        return str(self.store.where(index))


class ArrowTexts:
    """Texts in Arrow files; `open` and `notes` as for `ArrowRows`."""

    def __init__(self, reading: Reading, on_bad_row: OnBadRow) -> None:
        self.reading, self.on_bad_row = reading, on_bad_row
        self.store: Any = None
        self.notes: list[str] = []

    def open(self) -> "ArrowTexts":
        if self.store is None:
            self.store = cached(self.reading, self.on_bad_row)
            self.notes = noted(self.reading, self.store)
        return self

    def __len__(self) -> int:
        return len(self.store)

    def take(self, indices: Sequence[int]) -> list[str]:
        (texts,) = self.store.take(indices, ["text"])
        return list(texts)


class RowTexts:
    """The first positive of each row, as texts."""

    def __init__(self, rows: ArrowRows) -> None:
        self.rows, self.notes = rows, rows.notes

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int]) -> list[str]:
        return [row.positives[0] for row in self.rows.take(indices)]


def cached(reading: Reading, on_bad_row: OnBadRow) -> Store:
    """The rows or texts of the sources, read and judged once for each state of the sources.

    Raises:
        ValueError: a row that cannot be used, or no row at all.
    """
    from filelock import FileLock

    folder = cache_folder(reading, on_bad_row)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of two runs that begin at once one reads
            if not folder.is_dir():
                make(folder, reading, skip=on_bad_row == "skip")
    return Store(folder)


def cache_folder(reading: Reading, on_bad_row: OnBadRow) -> Path:
    """Where the cache of a reading is, in the folder of `datasets`: another one after each change of the files."""
    import datasets

    files = [*reading.paths, *corpus_files(reading.corpus)]
    stamps = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in files]
    key = json.dumps([FORMAT, reading, on_bad_row, stamps], sort_keys=True)
    return Path(datasets.config.HF_DATASETS_CACHE) / "bgetrain" / hashlib.sha256(key.encode()).hexdigest()[:32]


def noted(reading: Reading, store: Store) -> list[str]:
    """The notes of a store, under the name of what was read."""
    return [f"{reading.name()[:120]}:", *(f"  {note}" for note in store.notes)] if store.notes else []


def unmet(reading: Reading, store: Store) -> list[str]:
    """What to say of columns that `data.columns` names and the first rows have not: a typing mistake would pass else.

    `query` and `pos` are held against every row; a column called `none` is one that is meant to be left out.
    """
    asked = {ours: theirs for ours, theirs in reading.columns.items() if ours not in ("query", "pos") and theirs != "none"}
    first = range(min(LOOKED_AT, len(store)))
    return [
        f"data.columns: {ours} is {theirs!r}, which none of the first {len(first):,} rows of {reading.name()[:120]} has"
        for ours, theirs in asked.items()
        if reading.labels is None and not any(store.take(first, [ours])[0])
    ]


def as_retrieval(rows: ArrowRows) -> Retrieval:
    """All passages of labelled rows as a corpus, each text once, and their queries."""
    passages, places = distinct(rows, rows.store)
    query_ids = [f"q{number}" for number in range(len(rows))]
    queries: list[str] = []
    prompts: list[str | None] = []
    qrels: dict[str, dict[str, int]] = {}
    negatives: dict[str, list[str]] = {}
    first = 0
    for block in in_blocks(len(rows)):
        for row in rows.take(block):
            name, middle = query_ids[len(queries)], first + len(row.positives)
            qrels[name] = {f"p{place}": 1 for place in places[first:middle].tolist()}
            first = middle + len(row.negatives)
            if row.negatives:
                negatives[name] = [f"p{place}" for place in places[middle:first].tolist()]
            queries.append(row.query)
            prompts.append(row.prompt)
    return Retrieval(passages, query_ids, queries, prompts, qrels, negatives=negatives, notes=rows.notes)


def files_of(rows: Rows, places: Sequence[int]) -> list[str]:
    """The file of each row; the rows of a file stand together, so that few are asked for."""
    ends = [where.rpartition(", row ")[0] or where.rpartition(":")[0] for where in map(rows.where, (places[0], places[-1]))]
    if ends[0] == ends[1]:
        return [ends[0]] * len(places)
    middle = len(places) // 2
    return files_of(rows, places[:middle]) + files_of(rows, places[middle:])
