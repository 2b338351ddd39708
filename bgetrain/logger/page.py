"""Reports as one HTML file each: no script, nothing from the network, pictures drawn in place."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 360, 150  # of a picture, in pixels of a phone; larger screens enlarge it a little
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 14, 20  # margins
TICKS = 5
SHOWN = 20  # places of each kind


def environment(*folders: Path) -> Any:
    """Templates that escape what they show and refuse a name that is not there; all extend `base.html`.

    Args:
        folders: of templates besides the ones here.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([*folders, Path(__file__).parent])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["percent"] = percent
    made.filters["count"] = lambda value: f"{value:,}"
    return made


def check_page(report: Mapping[str, Any]) -> str:
    """The report of stage=check as HTML."""
    made = environment()
    made.globals["bars"] = bars
    return str(made.get_template("check.html").render(report=report, shown=SHOWN))


def percent(ratio: float) -> str:
    """A share in words that never round something to nothing."""
    return "0 %" if not ratio else f"{100 * ratio:.2f} %" if ratio >= 0.0001 else "below 0.01 %"


def bars(edges: Sequence[int], counts: Sequence[int], *, label: str, line: int | None = None, tail: bool = False) -> Any:
    """A histogram as inline SVG in the page's own colours.

    Args:
        edges: of the bars, one more than there are; whole numbers.
        counts: heights.
        label: what is counted, for those who cannot see it.
        line: a value to mark, such as a limit.
        tail: the last bar holds all greater values too.
    """
    from markupsafe import Markup

    total, peak = sum(counts) or 1, max([*counts, 1])
    span = max(1, edges[-1] - edges[0])

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - edges[0]) / span

    floor = HEIGHT - BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{Markup.escape(label)}">']
    for place, count in enumerate(counts):
        low, high = edges[place], edges[place + 1] - 1
        last = tail and place == len(counts) - 1
        values = f"{low:,} and more" if last else f"{low:,}" if low == high else f"{low:,} to {high:,}"
        height = (floor - TOP) * count / peak
        left, width = across(edges[place]), max(0.5, across(edges[place + 1]) - across(edges[place]) - 0.5)
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{floor - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{values}: {count:,} ({percent(count / total)})</title></rect>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>')
    parts.append(text(LEFT - 4, TOP + 4, "end", f"{100 * peak / total:.0f} %"))
    middle = 0.5 if edges[1] - edges[0] == 1 else 0.0  # a bar of one value has its number below its middle
    parts += [text(across(value + middle), HEIGHT - 6, "middle", f"{value:,}") for value in ticks(edges[0], edges[-1] - 1)]
    if line is not None and line < edges[-1]:
        at = across(line)
        anchor, shift = ("end", -4) if at > WIDTH / 2 else ("start", 4)
        parts.append(f'<path class="limit" d="M{at:.1f} {TOP - 4}V{floor}"/>')
        parts.append(text(at + shift, TOP + 4, anchor, f"limit {line:,}", "limit"))
    return Markup("".join([*parts, "</svg>"]))


def text(x: float, y: float, anchor: str, words: str, look: str = "label") -> str:
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def ticks(low: int, high: int) -> list[int]:
    """At most `TICKS` + 1 round values from `low` to `high`."""
    step = next(size for power in range(20) for size in (10**power, 2 * 10**power, 5 * 10**power) if (high - low) / size <= TICKS)
    return list(range(-(-low // step) * step, high + 1, step))
