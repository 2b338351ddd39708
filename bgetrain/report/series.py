"""Figures of `metrics.jsonl` as curves: which belong into one picture, and long ones thinned so that nothing is hidden."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bgetrain.report.read import is_number

POINTS = 400  # of a curve: more than a picture has pixels on a phone
FEWEST = 20  # points below which nothing is smoothed
NOISE = 0.02  # of a curve's height: how far points may lie from their neighbours' mean before a smoothed line is drawn
LINES = 6  # in one picture
EXACT = ("lr", "epoch", "memory_gb")  # without noise: a corner in them is one
DERIVED = ("step", "progress_ratio", "seconds_left")  # of a line: they say how far the run is
# How figures are called, with their unit; a figure that is not here stands in a picture of its own, under its own name.
NAMED = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm (L2, before clipping)",
    "queries_per_second": "Queries or texts per second",
    "tokens_per_second": "Tokens per second",
    "padding_ratio": "Padding (% of all tokens)",
    "memory_gb": "Memory (GB, fullest rank's peak)",
}
MEASURES = ("map",)  # of retrieval, besides those with a cut-off: ndcg@10


class Curve(NamedTuple):
    """One figure over the steps.

    Attributes:
        name: in `metrics.jsonl`.
        steps: [P], of each point the last step of what it stands for.
        values: [P], as logged or the mean of a bucket; NaN where a figure was not finite, which leaves a gap.
        low: [P], of a bucket; as `values` where each point is a line of the log.
        high: likewise.
        last: the last figure as logged that is finite; NaN: there is none.
        lines: of the log, for a point.
        broken: figures that were not finite.
        smooth: [P], the mean over the neighbours; None: the curve is smooth as it is.
        width: points in that mean.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: float
    lines: int
    broken: int
    smooth: np.ndarray | None
    width: int


class Picture(NamedTuple):
    """Curves that are drawn on the same axes.

    Attributes:
        title: with the unit.
        names: of the figures.
        factor: by which they are multiplied: 100 for shares.
        kind: training | evaluation | other.
    """

    title: str
    names: list[str]
    factor: float
    kind: str


def curve(lines: Sequence[Mapping[str, Any]], name: str, factor: float = 1.0) -> Curve:
    """One figure of all lines that have it.

    Args:
        lines: of training steps, in their order.
        name: of the figure.
        factor: of its values.
    """
    there = [(line["step"], line[name]) for line in lines if name in line]
    steps = np.array([step for step, _ in there], float)
    values = np.array([value if is_number(value) else np.nan for _, value in there], float) * factor
    values[~np.isfinite(values)] = np.nan
    broken = int(np.isnan(values).sum())
    last = next((float(value) for value in values[::-1] if np.isfinite(value)), float("nan"))
    size = -(-len(values) // POINTS) if len(values) else 1
    low = high = values
    if size > 1:
        starts = np.arange(0, len(values), size)  # a bucket with a figure that is not finite is a gap as a whole
        counts = np.diff([*starts, len(values)])
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        steps, values = steps[starts + counts - 1], np.add.reduceat(values, starts) / counts
    width = max(3, len(values) // 25 | 1)
    mean = smoothed(values, width) if len(values) >= FEWEST else values
    height = np.ptp(values[np.isfinite(values)]) if np.isfinite(values).any() else 0.0
    noise = np.nanstd(values - mean) if height and name not in EXACT else 0.0
    return Curve(name, steps, values, low, high, last, size, broken, mean if noise > NOISE * height else None, width)


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` neighbours on both sides together, fewer at the ends; NaN stays and counts nowhere else."""
    known = np.isfinite(values)
    ones = np.ones(width)
    counts = np.convolve(known.astype(float), ones, "same")
    sums = np.convolve(np.where(known, values, 0.0), ones, "same")
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def pictures(lines: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Every figure that was logged, in the picture where it belongs."""
    names = list(dict.fromkeys(name for line in lines for name in line if name not in DERIVED))
    at_evaluation = [name for name in names if is_evaluation(name)]
    rest = [name for name in names if name not in at_evaluation]
    losses = [name for name in rest if name == "loss" or name.endswith("_loss")]
    found = together("Loss", losses, "training")
    for prefix in dict.fromkeys(name.partition("/")[0] for name in rest if "/" in name):
        listed = [name for name in rest if name.partition("/")[0] == prefix and "/" in name]
        found += together(f"{prefix.replace('_', ' ').capitalize()}, by part", listed, "training")
    found += [
        Picture(NAMED[name], [name], 100.0 if name == "padding_ratio" else 1.0, "training") for name in NAMED if name in rest
    ]
    found += together("Accuracy (%)", [name for name in rest if name.endswith("accuracy")], "training", 100.0)
    found += together("Share of the step's time (%)", [name for name in rest if name.endswith("_share")], "training", 100.0)
    found += evaluations(at_evaluation)
    taken = {name for picture in found for name in picture.names}
    left = [name for name in names if name not in taken]
    found += together("Seconds beside the steps", [name for name in left if name.endswith("_seconds")], "other")
    return found + [Picture(name.replace("_", " "), [name], 1.0, "other") for name in left if not name.endswith("_seconds")]


def evaluations(names: Sequence[str]) -> list[Picture]:
    """The pictures of what was scored on held-out data."""
    losses = [name for name in names if name.endswith("_loss") and "/" not in name]
    scores = [name for name in names if name.rpartition("/")[2] in MEASURES or "@" in name]
    accuracies = [name for name in names if name.endswith("accuracy") and "/" not in name]
    found = together("Loss of held-out data", losses, "evaluation")
    gains = [name for name in scores if "ndcg" in name]
    found += together("Retrieval: nDCG (0 to 1)", gains, "evaluation")
    found += together("Retrieval: other measures (0 to 1)", [name for name in scores if name not in gains], "evaluation")
    found += together("Accuracy on held-out data (%)", accuracies, "evaluation", 100.0)
    parts = [name for name in names if "/" in name and name not in scores]
    for prefix in dict.fromkeys(name.partition("/")[0] for name in parts):
        listed = [name for name in parts if name.partition("/")[0] == prefix]
        found += together(f"{prefix.replace('_', ' ').capitalize()}, by part", listed, "evaluation")
    return found


def is_evaluation(name: str) -> bool:
    return name.startswith("held_out") or "@" in name or name.rpartition("/")[2] in MEASURES or name == "evaluate_seconds"


def together(title: str, names: Sequence[str], kind: str, factor: float = 1.0) -> list[Picture]:
    """Pictures of at most `LINES` curves each, numbered where there are several."""
    parts = [list(names[start : start + LINES]) for start in range(0, len(names), LINES)]
    several = len(parts) > 1
    return [
        Picture(f"{title} ({number} of {len(parts)})" if several else title, part, factor, kind)
        for number, part in enumerate(parts, 1)
    ]


def best_step(lines: Sequence[Mapping[str, Any]], result: Mapping[str, Any], metric: str | None) -> int | None:
    """The best step by the figure that decided; None: steps were not compared.

    Args:
        lines: of training steps.
        result: of the run, which has it where the run is done.
        metric: the figure; None: ndcg@10 where retrieval was evaluated, else held_out_loss.
    """
    told = (result.get("training") or {}).get("best_step")
    if told:
        return int(told)
    name = metric or next((each for each in ("ndcg@10", "held_out_loss") if any(each in line for line in lines)), None)
    there = [(line[name], line["step"]) for line in lines if name is not None and name in line]
    scored = [(value, step) for value, step in there if is_number(value) and math.isfinite(value)]  # a score may be NaN
    if not scored or name is None:
        return None
    lower = "loss" in name.partition("/")[0]  # engine/best.py's rule
    best = min(value for value, _ in scored) if lower else max(value for value, _ in scored)
    return next(int(step) for value, step in scored if value == best)
