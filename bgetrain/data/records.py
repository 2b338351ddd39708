"""What stands in JSONL, parquet and hub files, held against what a row or a text must be."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bgetrain import hub
from bgetrain.data.files import Entry, RowError, entries, no_object
from bgetrain.types import Fault, Found, Row

T = TypeVar("T")
ROW_COLUMNS = ("query", "pos", "neg", "prompt", "pos_scores", "neg_scores")


def raw(paths: Sequence[str], origin: dict[str, Any] | None, part: int = 0, parts: int = 1) -> Iterator[tuple[str, Entry]]:
    """Rows of the sources as they are, with their places: those of each file whose number modulo `parts` is `part`."""
    if origin is not None:
        for number, row in enumerate(reached(origin), 1):
            if number % parts == part:
                yield f"{origin['path']}, row {number}", Entry(number, row, None)
        return
    for path in map(Path, paths):
        if path.suffix == ".parquet":
            for entry in parquet(path):
                if entry.number % parts == part:
                    yield f"{path}, row {entry.number}" if entry.number else str(path), entry
        else:
            for entry in entries(path, part, parts):
                yield f"{path}:{entry.number}", entry


def parquet(path: Path) -> Iterator[Entry]:
    """Rows of a parquet file; number 0 for what concerns all of it."""
    import pyarrow
    import pyarrow.parquet

    try:
        groups = pyarrow.parquet.ParquetFile(path).iter_batches(1024)
        for number, row in enumerate((row for group in groups for row in group.to_pylist()), 1):
            yield Entry(number, row, None)
    except pyarrow.ArrowException as error:
        yield Entry(0, None, RowError("malformed", f"cannot be read as parquet: {error}"))


def reached(origin: dict[str, Any]) -> Any:
    """Loads a hub data set or a local copy of one.

    A local copy may be the whole repository, with `README.md` naming its configurations or with a folder for each, or
    the data files alone.

    Raises:
        ValueError: it cannot be reached or read; says how to point at files of one's own.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    path, config, split = origin["path"], origin["config"], origin["split"]
    if Path(path).is_dir():
        folder = Path(path, config) if config and Path(path, config).is_dir() else Path(path)
        try:
            known = datasets.get_dataset_config_names(str(folder))
            return datasets.load_dataset(str(folder), config if config in known else None, split=split)
        except (OSError, ValueError) as error:
            raise ValueError(f"data.path={path}: this folder cannot be read as a data set: {short(error)}") from error
    online = hub.settle()
    try:
        return datasets.load_dataset(path, config, split=split)
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        own = "data=text data.files=[texts.jsonl]" if "text" in origin["columns"] else "data=jsonl data.files=[train.jsonl]"
        reason = short(error) if online else hub.SILENT
        raise ValueError(
            f"data.path={path}: no local folder, and cannot be reached on the hub ({reason}); "
            f"point data.path=FOLDER at a local copy, or read files of your own with {own}"
        ) from error


def short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def found(
    check: Callable[[Any, dict[str, str]], T],
    paths: Sequence[str],
    origin: dict[str, Any] | None,
    columns: dict[str, str],
    part: int = 0,
    parts: int = 1,
) -> Iterator[tuple[str, T] | Fault]:
    """What `check` makes of each row, with its place, or why it makes nothing."""
    for where, entry in raw(paths, origin, part, parts):
        try:
            if entry.refused:
                raise entry.refused
            if not isinstance(entry.value, dict):
                raise RowError("malformed", no_object(entry.value))
            yield where, check(entry.value, columns)
        except RowError as error:
            yield error.at(where)


def scan(
    kind: str, paths: Sequence[str], origin: dict[str, Any] | None, columns: dict[str, str], part: int, parts: int
) -> Iterator[Found | Fault]:
    """`Source.scan` of rows or of texts, by `kind`."""
    check: Any = {"rows": checked, "texts": checked_text}[kind]
    for each in found(check, paths, origin, columns, part, parts):
        if isinstance(each, Fault):
            yield each
        else:
            where, value = each
            yield Found(where, value["text"] if kind == "texts" else Row(*(value[name] for name in ROW_COLUMNS)))


def labelled(paths: Sequence[str], origin: dict[str, Any] | None, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    for where, value in sound(checked, paths, origin, columns):
        yield {**value, "where": where}


def texts_only(paths: Sequence[str], origin: dict[str, Any] | None, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    for _, value in sound(checked_text, paths, origin, columns):
        yield value


def sound(
    check: Callable[[Any, dict[str, str]], T], paths: Sequence[str], origin: dict[str, Any] | None, columns: dict[str, str]
) -> Iterator[tuple[str, T]]:
    """As `found`, where every row must do.

    Raises:
        ValueError: the first row that does not, or there is none.
    """
    each = None
    for each in found(check, paths, origin, columns):
        if isinstance(each, Fault):
            raise ValueError(each.message)
        yield each
    if each is None:
        raise ValueError(f"{origin['path'] if origin else ', '.join(paths)}: no rows in it")


def checked_text(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A text under our name.

    Raises:
        RowError: it is missing, empty or no text.
    """
    name = columns.get("text", "text")
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        kind = "empty_text" if isinstance(value, str) else "no_text"
        raise RowError(kind, f"{name!r} must be a text that is not empty, got {brief(value)}")
    return {"text": value}


def checked(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row under our names.

    Raises:
        RowError: the query or a passage is missing, empty or no text, or scores do not fit.
    """
    names = {ours: columns.get(ours, ours) for ours in ROW_COLUMNS}
    query, prompt = row.get(names["query"]), row.get(names["prompt"])
    if names["query"] not in row:
        raise RowError("no_query", f"has no {names['query']!r}; its keys are {', '.join(row)}: map them with data.columns")
    if not isinstance(query, str) or not query.strip():
        kind = "empty_query" if isinstance(query, str) else "no_query"
        raise RowError(kind, f"{names['query']!r} must be a text that is not empty, got {brief(query)}")
    if prompt is not None and not isinstance(prompt, str):
        raise RowError("bad_prompt", f"{names['prompt']!r} must be a text, got {brief(prompt)}")
    positives = passages(row.get(names["pos"]), names["pos"], "passage")
    if not positives:
        raise RowError("no_positive", f"{names['pos']!r} must list at least one passage, got {brief(row.get(names['pos']))}")
    negatives = passages(row.get(names["neg"]), names["neg"], "negative")
    return {
        "query": query,
        "pos": positives,
        "neg": negatives,
        "prompt": prompt,
        "pos_scores": scores(row.get(names["pos_scores"]), len(positives), names["pos_scores"], names["pos"]),
        "neg_scores": scores(row.get(names["neg_scores"]), len(negatives), names["neg_scores"], names["neg"]),
    }


def scores(values: Any, count: int, name: str, of: str) -> list[float] | None:
    """A teacher's scores of `count` passages; None where there are none.

    Raises:
        RowError: no numbers, or more or fewer than passages.
    """
    if values is None or (values == [] and count > 0):
        return None
    if not isinstance(values, list) or any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        raise RowError("bad_scores", f"{name!r} must be a list of numbers, got {brief(values)}")
    if not all(map(math.isfinite, values)):
        raise RowError("bad_scores", f"{name!r} must hold finite numbers, got {brief(values)}")
    if len(values) != count:
        raise RowError("bad_scores", f"{name!r} has {len(values)} scores for the {count} passages of {of!r}: give one for each")
    return [float(each) for each in values]


def passages(values: Any, name: str, noun: str) -> list[str]:
    """A list of passages: texts, or objects with `title` and `text`; one alone counts as a list of one.

    Raises:
        RowError: no list, or one of them is empty or no text.
    """
    if values is None:
        return []
    if not isinstance(values, str | dict | list):
        raise RowError(f"bad_{noun}", f"{name!r} must be a list of passages, got {brief(values)}")
    made = []
    for value in [values] if isinstance(values, str | dict) else values:
        passage = f"{value.get('title') or ''} {value.get('text') or ''}".strip() if isinstance(value, dict) else value
        if not isinstance(passage, str) or not passage.strip():
            kind = f"empty_{noun}" if isinstance(passage, str) or passage is None else f"bad_{noun}"
            raise RowError(kind, f"every passage of {name!r} must be a text that is not empty, got {brief(value)}")
        made.append(passage)
    return made


def brief(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
