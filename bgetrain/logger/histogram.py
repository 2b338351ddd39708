"""Histograms as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

BINS = 50


def histogram(
    path: Path,
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    title: str,
    label: str,
    line: float | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Draws the share of each series' values in equal bins over their common range.

    Args:
        path: ends in `.png` or `.svg`, which says how it is written.
        series: name -> values; those that are not finite are left out.
        title: above the picture.
        label: what the values are, with their unit.
        line: a value to mark, such as a threshold.
        weights: name -> how often each value counts; None: once.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure and looks for a screen

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    finite = {name: np.asarray(values, float)[np.isfinite(np.asarray(values, float))] for name, values in series.items()}
    sizes = {name: np.ones(len(values)) for name, values in finite.items()} if weights is None else weights
    every = np.concatenate([np.zeros(0), *finite.values()])
    if len(every):
        edges = np.histogram_bin_edges(every, BINS)
        for name, values in finite.items():
            if len(values):
                axes.hist(values, edges.tolist(), weights=sizes[name] / sizes[name].sum(), alpha=0.6, label=name)
        axes.legend(frameon=False)
    if line is not None:
        axes.axvline(line, color="black", linewidth=1, linestyle="--")
    axes.set(title=title, xlabel=label, ylabel="share")
    axes.spines[["top", "right"]].set_visible(False)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format=path.suffix[1:], dpi=150)
    beside.replace(path)
