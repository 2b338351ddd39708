"""Figures of results as tables, whatever their shape."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bgetrain.logger import console
from bgetrain.report.read import is_number, mapping

DEEPEST = 4  # mappings within mappings that are shown
ROWS, COLUMNS = 40, 8  # of a table that are shown
LETTERS = 120  # of a text in a cell


class Table(NamedTuple):
    """Text, ready to show.

    Attributes:
        title: "" for none.
        columns: heads.
        rows: as many cells each as there are columns.
        left_out: rows that are not shown.
        columns_left_out: likewise.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    left_out: int
    columns_left_out: int = 0


def of(node: Mapping[str, Any], title: str, depth: int = 0) -> list[Table]:
    """Tables of everything in a mapping: its own figures, then what is below; mappings of like keys stand side by side.

    Args:
        node: plain values.
        title: of its own figures.
        depth: of the mapping in what is shown.
    """
    node = beside_intervals(node)
    own = [[words(name), shown(value)] for name, value in node.items() if is_plain(value)]
    found = [table(title, ["", ""], own)] if own else []
    below = {name: value for name, value in node.items() if isinstance(value, Mapping) and value}
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, value in below.items():
        if all(is_plain(each) for each in value.values()):
            alike.setdefault(tuple(sorted(value)), []).append(name)
    for name, value in below.items():
        group = alike.get(tuple(sorted(value)), [])
        if name in group[:1]:
            found.append(side_by_side(words(", ".join(group)), {each: below[each] for each in group}))
        elif name not in group and depth < DEEPEST:
            found += of(value, f"{title}: {words(name)}" if title else words(name), depth + 1)
    for name, value in node.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            found.append(of_rows(words(name), [mapping(each) for each in value]))
    return found


def beside_intervals(node: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation with the ends of their intervals beside them; `sets` goes where it repeats them."""
    ends, sets = mapping(node.get("intervals")), node.get("sets")
    found = {name: value for name, value in node.items() if name != "intervals" or not is_intervals(ends)}
    if is_intervals(ends) and isinstance(node.get("metrics"), Mapping):
        found["metrics"] = {
            name: f"{shown(value)} ({interval(ends[name])})" if name in ends else value for name, value in node["metrics"].items()
        }
    elif is_intervals(ends):
        found["intervals"] = {name: interval(value) for name, value in ends.items()}
    if isinstance(sets, Mapping):
        if len(sets) == 1 and "metrics" in node:
            del found["sets"]
        else:
            found["sets"] = {name: beside_intervals(each) if isinstance(each, Mapping) else each for name, each in sets.items()}
    return found


def is_intervals(node: Mapping[str, Any]) -> bool:
    """Whether each value is a low and a high end."""
    return bool(node) and all(isinstance(each, list) and len(each) == 2 and all(map(is_number, each)) for each in node.values())


def interval(ends: Sequence[float]) -> str:
    return f"{shown(ends[0])} to {shown(ends[1])}"


def side_by_side(title: str, columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each key, a column for each mapping; or turned where there are more mappings than columns have room."""
    keys = list(next(iter(columns.values())))
    if len(columns) > COLUMNS:
        return table(
            title, ["", *map(words, keys)], [[name, *(shown(each[key]) for key in keys)] for name, each in columns.items()]
        )
    heads = [""] if len(columns) == 1 else [words(name) for name in columns]
    return table(title, ["", *heads], [[words(key), *(shown(each[key]) for each in columns.values())] for key in keys])


def of_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each mapping of a list."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if all(is_plain(row.get(key)) for row in rows)]
    kept = keys[:COLUMNS]
    made = table(title, [words(key) for key in kept], [[shown(row.get(key)) for key in kept] for row in rows])
    return made._replace(columns_left_out=len(keys) - len(kept))


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    return Table(title, columns, rows[:ROWS], max(0, len(rows) - ROWS))


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def words(name: str) -> str:
    return name.replace("_", " ")


def shown(value: Any) -> str:
    """A cell: counts with separators, other numbers to four digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return console.number(int(value) if float(value).is_integer() and abs(value) < 1e15 else value)
    text = str(value)
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
