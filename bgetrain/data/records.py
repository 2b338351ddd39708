"""What stands in the rows of a source, held against what a row or a text must be: the one place that judges them."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from bgetrain.data.columns import (
    MISSING,
    ROW_COLUMNS,
    brief,
    joined,
    keys_of,
    listed,
    named,
    numbered_columns,
    value_at,
    value_or_none,
)
from bgetrain.data.files import RowError, no_object
from bgetrain.types import Column

LARGEST = 1e300  # of a score; whole numbers of JSON may be beyond what a float holds

Record = dict[str, Any]


class Reading(NamedTuple):
    """What is read and how; all that decides what comes out.

    Attributes:
        kind: labelled rows or texts.
        paths: files, in order; empty where `origin` names them.
        origin: path, config, split and files of a data set of the hub or of a folder like one; None: `paths` are all.
        columns: our name -> theirs.
        labels: column of a label, and which make a pair a positive or a negative; None: rows have no labels.
        corpus: what holds the passages where rows name them by id; None: rows hold the passages.
    """

    kind: Literal["rows", "texts"]
    paths: list[str]
    origin: dict[str, Any] | None
    columns: dict[str, Column]
    labels: dict[str, Any] | None = None
    corpus: str | None = None

    def name(self) -> str:
        """For messages."""
        return str(self.origin["path"]) if self.origin else ", ".join(self.paths)


class Judged(NamedTuple):
    """What became of a row.

    Attributes:
        number: of the row, as `pieces.read` counts.
        record: the row under our names; None where it is not used.
        error: why it is not used; None where its label says so.
    """

    number: int
    record: Record | None
    error: RowError | None


def record(value: Any, reading: Reading) -> Record | None:
    """A row or a text under our names; None for a row whose label makes nothing of it.

    Raises:
        RowError: it cannot be used.
    """
    if numbered_columns(reading.columns):
        if not isinstance(value, list):
            raise RowError("malformed", f'must be a list such as ["query", "positive"], got {brief(value)}')
    elif not isinstance(value, dict):
        raise RowError("malformed", no_object(value))
    if reading.kind == "texts":
        return {"text": checked_text(value, reading.columns)}
    if reading.labels is not None:
        return labelled_pair(value, reading)
    return checked(value, reading)


def checked_text(row: Any, columns: Mapping[str, Column]) -> str:
    theirs = columns.get("text", "text")
    value = joined(row, theirs)
    value = None if value is MISSING else value
    if not isinstance(value, str) or not value.strip():
        kind = "empty_text" if isinstance(value, str) else "no_text"
        raise RowError(kind, f"{named(theirs)} must be a text that is not empty, got {brief(value)}")
    return value


def checked(row: Any, reading: Reading) -> Record:
    """A labelled row.

    Raises:
        RowError: the query or a passage is missing, empty or no text, or scores do not fit.
    """
    query, prompt = query_and_prompt(row, reading.columns)
    names = {ours: reading.columns.get(ours, ours) for ours in ROW_COLUMNS}
    positives = passages(row, names["pos"], "passage", reading.corpus is not None)
    if not positives:
        got = brief(value_or_none(row, names["pos"]))
        raise RowError("no_positive", f"{named(names['pos'])} must list at least one passage, got {got}")
    negatives = passages(row, names["neg"], "negative", reading.corpus is not None)
    return {
        "query": query,
        "pos": positives,
        "neg": negatives,
        "prompt": prompt,
        "pos_scores": scores(row, names["pos_scores"], len(positives), names["pos"]),
        "neg_scores": scores(row, names["neg_scores"], len(negatives), names["neg"]),
    }


def query_and_prompt(row: Any, columns: Mapping[str, Column]) -> tuple[str, str | None]:
    theirs = columns.get("query", "query")
    query = joined(row, theirs)
    if query is MISSING:
        there = f"its keys are {keys_of(row)}" if isinstance(row, dict) else f"it has {len(row)} items"
        raise RowError("no_query", f"has no {named(theirs)}; {there}: map them with data.columns")
    if not isinstance(query, str) or not query.strip():
        kind = "empty_query" if isinstance(query, str) else "no_query"
        raise RowError(kind, f"{named(theirs)} must be a text that is not empty, got {brief(query)}")
    theirs = columns.get("prompt", "prompt")
    prompt = value_or_none(row, theirs)
    if prompt is not None and not isinstance(prompt, str):
        raise RowError("bad_prompt", f"{named(theirs)} must be a text, got {brief(prompt)}")
    return query, prompt


def labelled_pair(row: Any, reading: Reading) -> Record | None:
    """A query with one passage, which its label makes a positive or a negative.

    Raises:
        RowError: query, passage or label is missing or no text.
    """
    assert reading.labels is not None
    label = value_or_none(row, reading.labels["column"])
    if label is None:
        raise RowError("no_label", f"has no label {reading.labels['column']!r}: see data.labels")
    side = next((side for side in ("pos", "neg") if str(label) in map(str, reading.labels[side])), None)
    if side is None:
        return None
    query, prompt = query_and_prompt(row, reading.columns)
    theirs = reading.columns.get("pos", "pos")
    found = passages(row, theirs, "passage", reading.corpus is not None)
    if not found:
        raise RowError("no_positive", f"{named(theirs)} must be the passage that the label judges, got none")
    made: Record = {"query": query, "pos": [], "neg": [], "prompt": prompt, "pos_scores": None, "neg_scores": None}
    return {**made, side: found}


def scores(row: Any, theirs: Column, count: int, of: Column) -> list[float] | None:
    """A teacher's scores of `count` passages; None where there are none.

    Raises:
        RowError: no numbers, or more or fewer than passages.
    """
    values = value_or_none(row, theirs)
    if values is None or (values == [] and count > 0):
        return None
    if not isinstance(values, list) or any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        raise RowError("bad_scores", f"{named(theirs)} must be a list of numbers, got {brief(values)}")
    if not all(abs(each) < LARGEST for each in values):
        raise RowError("bad_scores", f"{named(theirs)} must hold finite numbers, got {brief(values)}")
    if len(values) != count:
        what = f"{len(values)} scores for the {count} passages of {named(of)}"
        raise RowError("bad_scores", f"{named(theirs)} has {what}: give one for each")
    return [float(each) for each in values]


def passages(row: Any, theirs: Column, noun: str, by_id: bool) -> list[str]:
    """The passages of a column, or of several; one alone counts as a list of one.

    Args:
        row: as the file has it.
        theirs: column or columns; one that a row lacks counts as empty.
        noun: "passage" or "negative", for the kinds of faults.
        by_id: ids are read, `docid`s or `_id`s of objects or bare ones, and not texts.

    Raises:
        RowError: no list, or one of them is empty or no text.
    """
    made: list[str] = []
    for name in listed(theirs):
        values = value_at(row, name)
        if values is None or values is MISSING:
            continue
        if not isinstance(values, str | dict | list) and not (by_id and is_id(values)):
            raise RowError(f"bad_{noun}", f"{name!r} must be a list of passages, got {brief(values)}")
        for value in values if isinstance(values, list) else [values]:
            made.append(passage_id(value, name, noun) if by_id else passage(value, name, noun))
    return made


def passage(value: Any, name: str | int, noun: str) -> str:
    """A text as it is, or `(title + " " + text).strip()` of an object."""
    text = value
    if isinstance(value, dict):
        parts = [value.get("title"), value.get("text")]
        text = " ".join(part or "" for part in parts).strip() if all(isinstance(part, str | None) for part in parts) else parts
    if not isinstance(text, str) or not text.strip():
        kind = f"empty_{noun}" if isinstance(text, str) or text is None else f"bad_{noun}"
        raise RowError(kind, f"every passage of {name!r} must be a text that is not empty, got {brief(value)}")
    return text


def passage_id(value: Any, name: str | int, noun: str) -> str:
    found = next((value[key] for key in ("docid", "_id") if key in value), None) if isinstance(value, dict) else value
    if not is_id(found) or found == "":
        raise RowError(f"bad_{noun}", f"every passage of {name!r} must be an id of data.corpus, got {brief(value)}")
    return str(found)


def is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
