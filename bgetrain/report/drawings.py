"""The pictures of a run's page, each with what stands beside it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bgetrain.logger import console
from bgetrain.report import plots, series
from bgetrain.report.read import Run, is_number, mapping

SIDES = ("positive", "negative")


class Section(NamedTuple):
    """The pictures of a kind.

    Attributes:
        pictures: each as `look.html` shows it.
        notes: how they are drawn.
    """

    pictures: list[dict[str, Any]]
    notes: list[str]


def curves(run: Run, best: int | None) -> dict[str, Section]:
    """Kind -> its pictures.

    Args:
        run: with its lines.
        best: the best step, which is marked where there was an evaluation.
    """
    found = {kind: Section([], []) for kind in ("training", "evaluation", "other")}
    for number, each in enumerate(series.pictures(run.steps)):
        lines = [series.curve(run.steps, name, each.factor) for name in each.names]
        mark = best if each.kind == "evaluation" else None
        label = f"{each.title}. {'; '.join(f'{line.name}: {sentence(line)}' for line in lines)}"
        shown = {
            "title": each.title,
            "svg": plots.curves(lines, name=f"curve{number}", label=label, best=mark),
            "names": [(line.name, value_of(line.last)) for line in lines],
            "notes": [gap(line) for line in lines if line.broken],
            "best": mark,
        }
        found[each.kind].pictures.append(shown)
        found[each.kind].notes.extend(note for note in notes(lines) if note not in found[each.kind].notes)
    return found


def value_of(value: float) -> str:
    """A figure in few letters."""
    if math.isnan(value):
        return "no figure"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else console.number(value)


def sentence(line: series.Curve) -> str:
    """A curve in words, for those who cannot see it."""
    first = next((float(value) for value in line.values if not math.isnan(value)), math.nan)
    return f"from {value_of(first)} to {value_of(line.last)} at step {int(line.steps[-1]):,}"


def gap(line: series.Curve) -> str:
    return f"{line.name}: {line.broken:,} figure{'s' * (line.broken != 1)} not finite, shown as a gap"


def notes(lines: Sequence[series.Curve]) -> list[str]:
    """How curves are drawn, where that is not plain."""
    size, smooth = max(line.lines for line in lines), [line.width for line in lines if line.smooth is not None]
    thinned = f"each point is the mean of {size} logged lines, and a band reaches from the lowest to the highest of them"
    points = "has the points" if size > 1 else "is as logged"
    mean = (
        f"where a colour has two lines, the strong one is the mean over {max(smooth, default=0)} points, the light one {points}"
    )
    return [thinned] * (size > 1) + [mean] * bool(smooth)


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
