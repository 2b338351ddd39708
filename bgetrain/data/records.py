"""What stands in JSONL, parquet and hub files, held against what a row or a text must be."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bgetrain import hub
from bgetrain.data.files import Line, lines, parquet

ROW_COLUMNS = ("query", "pos", "neg", "prompt", "pos_scores", "neg_scores")


def raw(paths: Sequence[str], origin: dict[str, Any] | None) -> Iterator[Line]:
    """All rows of the sources as they are, with their places.

    Raises:
        ValueError: there is none.
    """
    row = None
    if origin is not None:
        for number, row in enumerate(reached(origin), 1):
            yield Line(row, f"{origin['path']}, row {number}")
    else:
        for path in map(Path, paths):
            for row in parquet(path) if path.suffix == ".parquet" else lines(path):
                yield row
    if row is None:
        raise ValueError(f"{origin['path'] if origin else ', '.join(paths)}: no rows in it")


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


def labelled(paths: Sequence[str], origin: dict[str, Any] | None, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    for row, where in raw(paths, origin):
        yield {**checked(row, columns, where), "where": where}


def texts_only(paths: Sequence[str], origin: dict[str, Any] | None, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    name = columns.get("text", "text")
    for row, where in raw(paths, origin):
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {name!r} must be a text that is not empty, got {brief(value)}")
        yield {"text": value}


def checked(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """A row under our names.

    Raises:
        ValueError: the query or a passage is missing, empty or no text; names the place.
    """
    names = {ours: columns.get(ours, ours) for ours in ROW_COLUMNS}
    query, prompt = row.get(names["query"]), row.get(names["prompt"])
    if names["query"] not in row:
        raise ValueError(f"{where}: has no {names['query']!r}; its keys are {', '.join(row)}: map them with data.columns")
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"{where}: {names['query']!r} must be a text that is not empty, got {brief(query)}")
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"{where}: {names['prompt']!r} must be a text, got {brief(prompt)}")
    positives = passages(row.get(names["pos"]), names["pos"], where)
    if not positives:
        raise ValueError(f"{where}: {names['pos']!r} must list at least one passage, got {brief(row.get(names['pos']))}")
    negatives = passages(row.get(names["neg"]), names["neg"], where)
    return {
        "query": query,
        "pos": positives,
        "neg": negatives,
        "prompt": prompt,
        "pos_scores": scores(row.get(names["pos_scores"]), len(positives), names["pos_scores"], names["pos"], where),
        "neg_scores": scores(row.get(names["neg_scores"]), len(negatives), names["neg_scores"], names["neg"], where),
    }


def scores(values: Any, count: int, name: str, of: str, where: str) -> list[float] | None:
    """A teacher's scores of `count` passages; None where there are none.

    Raises:
        ValueError: no numbers, or more or fewer than passages.
    """
    if values is None or (values == [] and count > 0):
        return None
    if not isinstance(values, list) or any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        raise ValueError(f"{where}: {name!r} must be a list of numbers, got {brief(values)}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{where}: {name!r} must hold finite numbers, got {brief(values)}")
    if len(values) != count:
        raise ValueError(f"{where}: {name!r} has {len(values)} scores for the {count} passages of {of!r}: give one for each")
    return [float(each) for each in values]


def passages(values: Any, name: str, where: str) -> list[str]:
    """A list of passages: texts, or objects with `title` and `text`; one alone counts as a list of one."""
    if values is None:
        return []
    if not isinstance(values, str | dict | list):
        raise ValueError(f"{where}: {name!r} must be a list of passages, got {brief(values)}")
    found = []
    for value in [values] if isinstance(values, str | dict) else values:
        passage = f"{value.get('title') or ''} {value.get('text') or ''}".strip() if isinstance(value, dict) else value
        if not isinstance(passage, str) or not passage.strip():
            raise ValueError(f"{where}: every passage of {name!r} must be a text that is not empty, got {brief(value)}")
        found.append(passage)
    return found


def brief(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
