"""The pictures of a run's page, each with what stands beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bgetrain.logger import console
from bgetrain.report import plots, series
from bgetrain.report.read import Run, is_number, mapping

SIDES = ("positive", "negative")


def curves(run: Run, best: int | None) -> dict[str, list[dict[str, Any]]]:
    """Kind -> its pictures, each with what stands beside it."""
    found: dict[str, list[dict[str, Any]]] = {"training": [], "evaluation": [], "other": []}
    for number, each in enumerate(series.pictures(run.steps)):
        lines = [made for name in each.names if len((made := series.curve(run.steps, name, each.factor)).steps)]
        label = "; ".join(f"{line.name}: {sentence(line)}" for line in lines)
        mark = best if each.kind == "evaluation" else None
        svg = plots.curves(lines, name=f"curve{number}", label=f"{each.title}. {label}", best=mark)
        found[each.kind].append({"title": each.title, "svg": svg, "names": keys(lines), "notes": notes(lines), "best": mark})
    return found


def keys(lines: Sequence[series.Curve]) -> list[tuple[str, str]]:
    """Names of curves, each with its last value."""
    return [(line.name, value_of(last_of(line))) for line in lines]


def last_of(line: series.Curve) -> float:
    known = line.values[~missing(line.values)]
    return float(known[-1]) if len(known) else math.nan


def missing(values: Any) -> Any:
    return values != values  # NaN alone is not itself


def value_of(value: float) -> str:
    return "none" if value != value else console.number(value)


def sentence(line: series.Curve) -> str:
    known = line.values[~missing(line.values)]
    if not len(known):
        return "no figure"
    return f"from {value_of(float(known[0]))} to {value_of(float(known[-1]))} at step {int(line.steps[-1])}"


def notes(lines: Sequence[series.Curve]) -> list[str]:
    """What the reader must know of how curves are drawn."""
    found = []
    size, width = max(line.lines for line in lines), max(line.width for line in lines)
    if size > 1:
        found.append(f"each point is the mean of {size} logged lines, the band reaches from the lowest to the highest of them")
    if any(line.smooth is not None for line in lines):
        found.append(f"strong line: mean over {width} points around; light: {'the points' if size > 1 else 'as logged'}")
    broken = {line.name: line.broken for line in lines if line.broken}
    found += [f"{name}: {count} figure{'s' * (count != 1)} not finite, shown as gaps" for name, count in broken.items()]
    return found


def similarity(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pictures of similarities of `examples.json`: before and after training, on one axis."""
    given = mapping(found.get("similarity"))
    edges, parts = given.get("edges"), mapping(given.get("series"))
    if not isinstance(edges, list) or not all(map(is_number, edges)):
        return []
    named: dict[str, dict[str, list[float]]] = {
        when: {side: list(counts) for side in SIDES if is_counts(counts := mapping(each).get(side) or [], len(edges) - 1)}
             for when, each in parts.items()}  # fmt: skip
    named = {when: each for when, each in named.items() if each}
    filled = [place for each in named.values() for counts in each.values() for place, count in enumerate(counts) if count]
    if not filled:
        return []
    span = edges[max(0, min(filled) - 1)], edges[min(len(edges) - 1, max(filled) + 2)]
    means = mapping(found.get("means"))
    return [
        {
            "title": {"before": "Before training", "after": "After training"}.get(when, when) if len(named) > 1 else "",
            "svg": plots.histogram(edges, counts, span=span, name=f"similarity-{when}", label=f"similarities {when}",
                                   axis="cosine similarity"),
            "names": [(side, mean_of(means, when, side)) for side in counts],
        }
        for when, counts in named.items()
    ]  # fmt: skip


def mean_of(means: Mapping[str, Any], when: str, side: str) -> str:
    value = mapping(means.get(when)).get(side)
    return f"mean {value:.3f}" if is_number(value) else ""


def is_counts(value: Any, size: int) -> bool:
    return isinstance(value, list) and len(value) == size and all(map(is_number, value)) and sum(value) > 0
