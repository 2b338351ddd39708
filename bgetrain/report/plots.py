"""Pictures as inline SVG whose text stays text and whose colours are the page's, light or dark."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from bgetrain.report.series import Curve

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 320, 180  # points, which are pixels of a phone; larger screens enlarge a picture a little
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 8, 32  # margins
TICKS = 5
MARKED = 25  # points up to which each is marked
STEEP = 30  # largest value over the median from which an axis is logarithmic
# Colours stand for those of the page: matplotlib knows no CSS variables, so each is drawn in a colour that is exchanged.
COLOURS = {
    "#000001": "var(--one)",
    "#000002": "var(--two)",
    "#000003": "var(--three)",
    "#000004": "var(--four)",
    "#000005": "var(--five)",
    "#000006": "var(--six)",
    "#000011": "var(--soft)",
    "#000012": "var(--line)",
    "#000013": "var(--good)",
}
SERIES = tuple(COLOURS)[:6]
SOFT, LINE, GOOD = tuple(COLOURS)[6:]
TICK = {"major.size": 0, "minor.size": 0, "major.pad": 4, "labelcolor": SOFT, "minor.visible": False}
PARTS = r"figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|FillBetween\w*|LineCollection\w*"  # that have ids of no use
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a figure's name may hold a dollar
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "path.simplify": True,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in TICK.items()},
}


def curves(found: Sequence[Curve], *, name: str, label: str, best: int | None) -> "Markup":
    """Curves over the steps.

    Args:
        found: one or more with points.
        name: of the picture, which makes the ids in it its own.
        label: what it shows, for those who cannot see it.
        best: a step to mark.
    """

    def draw(axes: "Axes") -> None:
        for colour, each in zip(SERIES, found, strict=False):
            few = len(each.steps) <= MARKED
            if each.lines > 1:
                axes.fill_between(each.steps, each.low, each.high, color=colour, alpha=0.25, linewidth=0)
            light = each.smooth is not None
            axes.plot(each.steps, each.values, color=colour, alpha=0.35 if light else 1.0, linewidth=1.0 if light else 1.5,
                      marker="o" if few else "", markersize=2.5)  # fmt: skip
            if each.smooth is not None:
                axes.plot(each.steps, each.smooth, color=colour, linewidth=1.8)
            if not few:  # a point between two gaps is on no line
                alone = isolated(each.values)
                axes.plot(each.steps[alone], each.values[alone], color=colour, marker="o", markersize=2.5, linestyle="")
        if is_steep(found):
            axes.set_yscale("log")
        elif axes.get_ylim()[0] < 0 <= min(float(np.nanmin([*each.low, np.inf])) for each in found):
            axes.set_ylim(bottom=0, top=axes.get_ylim()[1] if any(np.nanmax([*each.high, 0]) > 0 for each in found) else 1)
        if best is not None:
            axes.axvline(best, color=GOOD, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlabel("step (log scale upward)" if is_steep(found) else "step")

    return picture(draw, name=name, label=label)


def isolated(values: np.ndarray) -> np.ndarray:
    """Which points have no neighbour that is finite."""
    known = np.isfinite(values)
    beside = np.concatenate([[False], known, [False]])
    return known & ~beside[:-2] & ~beside[2:]


def is_steep(found: Sequence[Curve]) -> bool:
    """Whether the curves would lie flat on the ground below a few peaks."""
    values = np.concatenate([each.values for each in found])
    values = values[np.isfinite(values)]
    return bool(len(values) > 2 and values.min() > 0 and values.max() > STEEP * np.median(values))


def histogram(
    edges: Sequence[float], series: Mapping[str, Sequence[float]], *, span: tuple[float, float], name: str, label: str, axis: str
) -> "Markup":
    """The share of each series' values in bins, in percent.

    Args:
        edges: of the bins, one more than there are.
        series: name -> how many values each bin has.
        span: of the axis.
        name: of the picture.
        label: what it shows, for those who cannot see it.
        axis: what the values are, with their unit.
    """

    def draw(axes: "Axes") -> None:
        middles = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
        for colour, counts in zip(SERIES, series.values(), strict=False):
            total = sum(counts) or 1
            heights = 100 * np.asarray(counts, float) / total
            axes.stairs(heights, edges, color=colour, alpha=0.35, fill=True)
            axes.stairs(np.where(heights > 0, heights, np.nan), edges, color=colour, linewidth=1.4)
            axes.axvline(float(np.dot(middles, counts) / total), color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_xlim(*span)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(axis)

    return picture(draw, name=name, label=label)


def bars(
    rows: Sequence[str], series: Mapping[str, Sequence[float]], *, lines: Mapping[str, float], name: str, label: str, axis: str
) -> "Markup":
    """Bars to the right, a group for each row from above, each with its value.

    Args:
        rows: names of the groups.
        series: name -> a value of each row, NaN for none.
        lines: name of a series -> a value to mark in its colour.
        name: of the picture.
        label: what it shows, for those who cannot see it.
        axis: what the values are, with their unit.
    """
    size, left = len(series), min(120, 14 + 6 * max(map(len, rows)))

    def draw(axes: "Axes") -> None:
        for number, (key, values) in enumerate(series.items()):
            at = np.arange(len(rows)) * (size + 1) + number
            axes.barh(at, np.nan_to_num(values), height=0.85, color=SERIES[number], linewidth=0)
            for place, value in zip(at, values, strict=True):
                shown = "–" if np.isnan(value) else f"{value:.4f}"
                axes.annotate(shown, (float(np.nan_to_num(value)), float(place)), (4, 0), textcoords="offset points", va="center",
                              color=SOFT, fontsize=9)  # fmt: skip
            if key in lines:
                axes.axvline(lines[key], color=SERIES[number], linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(np.arange(len(rows)) * (size + 1) + (size - 1) / 2, [shortened(row) for row in rows])
        axes.set_ylim(len(rows) * (size + 1) - 1, -1)
        most = max([np.nanmax([*values, 0.0]) for values in series.values()] + list(lines.values()))
        axes.set_xlim(0, (most or 1.0) * 1.18)
        axes.set_xlabel(axis)

    height = TOP + BOTTOM + len(rows) * (size + 1) * 12
    return picture(draw, name=name, label=label, height=height, left=left, across=True)


def shortened(text: str, letters: int = 18) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def picture(
    draw: Callable[["Axes"], None], *, name: str, label: str, height: int = HEIGHT, left: int = LEFT, across: bool = False
) -> "Markup":
    """What `draw` puts on axes in the look of the page.

    Args:
        draw: called with empty axes.
        name: makes ids that differ from those of other pictures.
        label: for those who cannot see it.
        height: points.
        left: margin, points.
        across: the bars lie, so that the grid stands.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    # a letter that the measuring font lacks is drawn by the reader's own
    lying: dict[str, Any] = {"axes.grid.axis": "x" if across else "y", f"axes.spines.{'bottom' if across else 'left'}": False}
    look: Any = {**SETTINGS, **lying, "svg.hashsalt": name}
    with matplotlib.rc_context(look), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        frame = (left / WIDTH, BOTTOM / height, (WIDTH - left - RIGHT) / WIDTH, (height - TOP - BOTTOM) / height)
        axes = figure.add_axes(frame)
        draw(axes)
        for one in (axes.xaxis,) if across else (axes.xaxis, axes.yaxis):
            if one.get_scale() == "log":
                one.set_major_locator(LogLocator(numticks=TICKS))
                one.set_minor_formatter(NullFormatter())
            else:
                one.set_major_locator(
                    MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10], integer=one is axes.xaxis and not across and whole(axes))
                )
            low, high = one.get_view_interval()
            one.set_major_formatter(FuncFormatter(lambda value, _, span=high - low: compact(value, span)))
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(text.getvalue(), label, height)


def whole(axes: "Axes") -> bool:
    """Whether the axis is of steps."""
    return axes.get_xlabel().startswith("step")


def compact(value: float, span: float) -> str:
    """A number in few letters: 12k, 0.05, 2e-05; with as many digits as tell apart what is on an axis of this span."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (letter != "k" and abs(value) >= size):
            return f"{value / size:.{digits(value, span)}g}{letter}"
    return f"{value:.{digits(value, span)}g}"


def digits(value: float, span: float) -> int:
    """Significant digits that tell apart a few values on an axis."""
    if not value or not span:
        return 3
    return int(min(8, max(4, np.ceil(np.log10(abs(value) / abs(span))) + 2)))  # four: 1000 is no 1e+03


def inline(svg: str, label: str, height: int) -> "Markup":
    """An SVG file's drawing for use in a page: without what names addresses, with the page's font and colours."""
    from markupsafe import Markup, escape

    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(rf' id="(?:{PARTS})_\d+"', "", body)
    body = re.sub(r"font: ([\d.]+)px[^;\"]*;?", r"font-size: \1px;", body)
    body = re.sub(r" transform=\"rotate\(-0 [^\"]*\"| font-family: [^;\"]*;|<g/>|<defs>\s*</defs>", "", body)
    body = re.sub(r"(?<= d=\")[^\"]*", lambda found: rounded(found[0]), body)
    body = re.sub(r"#0000[01]\d", lambda found: COLOURS.get(found[0], found[0]), body)
    body = re.sub(r"(?<= [xy]=\")[\d.]+", lambda found: rounded(found[0]), body)
    body = re.sub(r"\s*\n\s*", "\n", body.replace("xlink:href", "href")).strip()
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">\n{body}\n</svg>')


def rounded(path: str) -> str:
    """A path on tenths of a pixel."""
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), path).replace(" \n", "\n").strip()
