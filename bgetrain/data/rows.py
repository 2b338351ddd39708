"""Labelled rows and texts from JSONL, parquet and the hub, checked once and then memory-mapped as Arrow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bgetrain.data.arrow import cached
from bgetrain.data.files import existing
from bgetrain.data.passages import distinct, in_blocks
from bgetrain.data.records import ROW_COLUMNS, labelled, texts_only
from bgetrain.types import MissingNegatives, PositiveInt, Retrieval, Row, Source


def jsonl(
    files: list[str],
    *,
    columns: dict[str, str],
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    missing_negatives: MissingNegatives,
    split: str,
) -> Source:
    """Opens files of rows `{"query", "pos", "neg", "prompt", "pos_scores", "neg_scores"}`, FlagEmbedding's format.

    All but `query` and `pos` are optional.

    Args:
        files: `.jsonl`, `.jsonl.gz`, `.json` or `.parquet`; patterns such as `parts/*.jsonl` are expanded.
        columns: our name -> theirs.
        query_max_len: tokens of a query, special tokens included.
        passage_max_len: the same for passages.
        query_instruction: put before a query whose row has no `prompt`.
        missing_negatives: what to do with rows without `neg` where group_size > 1.
        split: a name for messages; the files hold one split.

    Raises:
        ValueError: a file is missing.
    """
    paths = named_files(files)
    check_columns(columns, ROW_COLUMNS)
    rows = ArrowRows(paths, None, dict(columns))
    limits = (split, query_max_len, passage_max_len, query_instruction, missing_negatives)
    return Source("data=jsonl", lambda: RowTexts(rows.open()), rows.open, lambda _: as_retrieval(rows.open()), paths, *limits)


def text(
    files: list[str],
    *,
    columns: dict[str, str],
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    split: str,
) -> Source:
    """Opens files of texts `{"text": str}` for pre-training; arguments as for `jsonl`."""
    paths = named_files(files)
    check_columns(columns, ("text",))
    texts = ArrowTexts(paths, None, dict(columns))
    limits = (split, query_max_len, passage_max_len, query_instruction, "refuse")
    return Source("data=text", texts.open, None, None, paths, *limits)


def hub(
    path: str,
    *,
    config: str | None,
    columns: dict[str, str],
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    missing_negatives: MissingNegatives,
    split: str,
) -> Source:
    """Opens a data set of the Hugging Face hub, or a local folder that holds the same files.

    A passage may be a text or an object with `title` and `text`, as Tevatron's sets have it.

    Args:
        path: hub id, or a folder.
        config: the set's configuration; None: its only one.
        columns: our name -> theirs; with `text` among ours the set is one of texts, else of labelled rows.
        others: as for `jsonl`.
    """
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    limits = (split, query_max_len, passage_max_len, query_instruction, missing_negatives)
    paths = [str(each) for each in sorted(Path(path).rglob("*")) if each.is_file()] if Path(path).is_dir() else []
    origin = {"path": path, "config": config, "split": split, "columns": sorted(columns)}
    if "text" in columns:
        check_columns(columns, ("text",))
        texts = ArrowTexts(paths, origin, dict(columns))
        return Source(f"data={path}", texts.open, None, None, paths, *limits)
    check_columns(columns, ROW_COLUMNS)
    rows = ArrowRows(paths, origin, dict(columns))
    return Source(f"data={path}", lambda: RowTexts(rows.open()), rows.open, lambda _: as_retrieval(rows.open()), paths, *limits)


def named_files(patterns: Sequence[str]) -> list[str]:
    """The files that `data.files` names.

    Raises:
        ValueError: there is none.
    """
    paths = [str(path) for pattern in patterns for path in matching(pattern)]
    if not paths:
        raise ValueError("data.files=[] is empty: give at least one file")
    return paths


def matching(pattern: str) -> list[Path]:
    """The files that a path or a pattern names, sorted.

    Raises:
        ValueError: there is none.
    """
    path = Path(pattern).expanduser()
    if any(sign in pattern for sign in "*?["):
        found = sorted(each for each in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if each.is_file())
        if not found:
            raise ValueError(f"data.files: {pattern} matches no file")
        return found
    file = existing(pattern, "data.files")
    if file.is_dir():
        raise ValueError(f"data.files: {pattern} is a folder: name its files, e.g. [{pattern.rstrip('/')}/*.jsonl]")
    return [file]


def check_columns(columns: Mapping[str, str], known: Sequence[str]) -> None:
    for name in columns:
        if name not in known:
            raise ValueError(f"data.columns has no key {name!r}: it maps {', '.join(known)} to your names")


class ArrowRows:
    """Labelled rows in an Arrow file; `open` reads and checks the sources the first time."""

    def __init__(self, paths: list[str], origin: dict[str, Any] | None, columns: dict[str, str]) -> None:
        self.paths, self.origin, self.columns = paths, origin, columns
        self.table: Any = None

    def open(self) -> "ArrowRows":
        from datasets import Features, List, Value

        if self.table is None:
            texts = List(Value("large_string"))
            shape = {
                "query": Value("large_string"),
                "pos": texts,
                "neg": texts,
                "prompt": Value("string"),
                "pos_scores": List(Value("float64")),
                "neg_scores": List(Value("float64")),
                "where": Value("string"),
            }
            self.table = cached(labelled, self.paths, self.origin, self.columns, Features(shape))
        return self

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: Sequence[int]) -> list[Row]:
        found = self.table[list(indices)]
        columns = (found[name] for name in ROW_COLUMNS)
        return [Row(*values) for values in zip(*columns, strict=True)]

    def where(self, index: int) -> str:
        return str(self.table[index]["where"])


class ArrowTexts:
    """Texts in an Arrow file; `open` reads and checks the sources the first time."""

    def __init__(self, paths: list[str], origin: dict[str, Any] | None, columns: dict[str, str]) -> None:
        self.paths, self.origin, self.columns = paths, origin, columns
        self.table: Any = None

    def open(self) -> "ArrowTexts":
        from datasets import Features, Value

        if self.table is None:
            self.table = cached(texts_only, self.paths, self.origin, self.columns, Features({"text": Value("large_string")}))
        return self

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: Sequence[int]) -> list[str]:
        return list(self.table[list(indices)]["text"])


class RowTexts:
    """The first positive of each row, as texts."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int]) -> list[str]:
        return [row.positives[0] for row in self.rows.take(indices)]


def as_retrieval(rows: ArrowRows) -> Retrieval:
    """All passages of labelled rows as a corpus, each text once, and their queries."""
    passages, places = distinct(rows, rows.table)
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
    return Retrieval(passages, query_ids, queries, prompts, qrels, negatives=negatives)
