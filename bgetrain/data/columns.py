"""The column map: which columns, or places inside them, of somebody's rows are our query, passages and texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from bgetrain.data.files import RowError
from bgetrain.types import Column

ROW_COLUMNS = ("query", "pos", "neg", "prompt", "pos_scores", "neg_scores")
TEXT_COLUMNS = ("text",)
SEVERAL = {"query": "joined by a space", "text": "joined by a space", "pos": "all of them", "neg": "all of them"}
LONGEST, MOST_KEYS = 60, 30  # of a key, and of keys, that a message repeats
MISSING = object()  # None is a value: that of a column without one in this row


def check_columns(columns: Mapping[str, Any], known: Sequence[str]) -> None:
    """Holds a column map against the language that it is written in.

    Raises:
        ValueError: the first key or value that is not of it.
    """
    for ours, theirs in columns.items():
        if ours not in known:
            raise ValueError(f"data.columns has no key {ours!r}: it maps {', '.join(known)} to your names")
        if isinstance(theirs, list) and ours not in SEVERAL:
            raise ValueError(f"data.columns.{ours}={theirs} must be one column: lists are for {', '.join(SEVERAL)}")
        names: list[Any] = listed(theirs) or [None]
        for name in names:
            number = isinstance(name, int) and not isinstance(name, bool) and name >= 0
            if not number and (not isinstance(name, str) or not name):
                what = "a column, a path such as answers.text, a whole number for lines that are lists, or a list of these"
                raise ValueError(f"data.columns.{ours} must be {what}, got {theirs!r}")
    kinds = {isinstance(name, int) for theirs in columns.values() for name in listed(theirs)}
    if len(kinds) > 1:
        raise ValueError(f"data.columns={dict(columns)} mixes numbers, for lines that are lists, with names: use one of them")


def check_labels(labels: Mapping[str, Any] | None) -> None:
    """As `check_columns`, for `data.labels`."""
    if labels is None:
        return
    form = "{column: label, pos: [entailment], neg: [contradiction]}"
    if set(labels) != {"column", "pos", "neg"}:
        raise ValueError(f"data.labels must have the keys column, pos and neg, e.g. {form}, got {dict(labels)}")
    for key in ("pos", "neg"):
        if not isinstance(labels[key], list) or not all(isinstance(each, str | int) for each in labels[key]):
            raise ValueError(f"data.labels.{key} must be a list of labels, e.g. {form}, got {labels[key]!r}")
    if not labels["pos"]:
        raise ValueError(f"data.labels.pos is empty, so that no row would have a positive: name a label, e.g. {form}")
    both = {str(each) for each in labels["pos"]} & {str(each) for each in labels["neg"]}
    if both:
        raise ValueError(f"data.labels has {min(both)} under pos and under neg: name it under one")


def listed(theirs: Column) -> list[str | int]:
    return theirs if isinstance(theirs, list) else [theirs]


def numbered_columns(columns: Mapping[str, Column]) -> bool:
    """Whether lines are lists, `["query", "positive"]`, and not objects."""
    return any(isinstance(name, int) for theirs in columns.values() for name in listed(theirs))


def named(theirs: Column) -> str:
    """For messages: `'query'`, or `'title' and 'abstract'`."""
    return " and ".join(map(repr, listed(theirs)))


def top_level(columns: Mapping[str, Column], known: Sequence[str], more: Sequence[str]) -> set[str]:
    """Names of the columns that hold all that is asked for."""
    names = [str(name) for ours in known for name in listed(columns.get(ours, ours))]
    return {part for name in [*names, *more] for part in (name, name.split(".")[0])}


def value_at(row: Any, name: str | int) -> Any:
    """What a row has under a column or a path; `MISSING` where there is no such place."""
    if isinstance(row, list):
        return row[name] if isinstance(name, int) and name < len(row) else MISSING
    if name in row or not isinstance(name, str) or "." not in name:
        return row.get(name, MISSING)
    value = row
    for step in name.split("."):
        value = below(value, step)
        if value is MISSING:
            break
    return value


def value_or_none(row: Any, theirs: Column) -> Any:
    """The value of one column; None where there is no such place."""
    value = value_at(row, listed(theirs)[0])
    return None if value is MISSING else value


def below(value: Any, step: str) -> Any:
    """One step into an object, into a list by its place, or into each object of a list."""
    if isinstance(value, Mapping):
        return value.get(step, MISSING)
    if not isinstance(value, list):
        return MISSING
    if step.isdecimal():
        return value[int(step)] if int(step) < len(value) else MISSING
    found = [below(each, step) for each in value]
    return MISSING if any(each is MISSING for each in found) else found


def joined(row: Any, theirs: Column) -> Any:
    """The value of a column, or those of several joined by a space; `MISSING` where there is none of them.

    Raises:
        RowError: one of several is no text.
    """
    if not isinstance(theirs, list):
        return value_at(row, theirs)
    values = [value_at(row, name) for name in theirs]
    if all(value is MISSING for value in values):
        return MISSING
    there = [value for value in values if value is not MISSING and value is not None]
    for value in there:
        if not isinstance(value, str):
            raise RowError("malformed", f"{named(theirs)} must be texts, to be joined, got {brief(value)}")
    return " ".join(text for value in there if (text := value.strip()))


def brief(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."


def keys_of(row: Mapping[str, Any]) -> str:
    """The keys of a row for messages, in one line that can be read."""
    shown = [key if key.isprintable() and len(key) <= LONGEST else brief(key) for key in list(row)[:MOST_KEYS]]
    return ", ".join(shown) + (f" and {len(row) - MOST_KEYS} more" if len(row) > MOST_KEYS else "")
