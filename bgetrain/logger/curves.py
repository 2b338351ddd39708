"""The course of a run as a small picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

DPI = 90


def curves(path: Path, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> None:
    """Draws panels side by side, each with its lines over steps.

    Args:
        path: ends in `.png` or `.svg`, which says how it is written.
        panels: title -> name of a line -> its steps and values, equally many.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure and looks for a screen

    figure = Figure(figsize=(3.4 * len(panels), 2.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, (steps, values) in lines.items():
            axes.plot(steps, values, label=name, linewidth=1.2, marker="o" if len(steps) < 12 else "", markersize=3)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format=path.suffix[1:], dpi=DPI)
    beside.replace(path)
