"""What a person sees: a progress bar on a terminal, plain lines in a log file, and tables.

Progress and messages go to stderr, results to stdout.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

if TYPE_CHECKING:
    from bgetrain.types import Log

SECONDS_BETWEEN_LINES = 10.0  # of `track`, where stderr is not a terminal
SECONDS_BETWEEN_FRAMES = 0.1
UNITS = {"queries_per_second": "queries/s", "texts_per_second": "texts/s", "tokens_per_second": "tokens/s"}


class Bar:
    """Training on a terminal: one bar, other figures on lines above it."""

    def __init__(self) -> None:
        self.progress = _progress()
        self.task = self.progress.add_task("step", total=1.0, figures="", left="", start=False)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar where `metrics` has progress_ratio, else prints the figures above it."""
        if "progress_ratio" not in metrics:
            say(line(step, metrics))
            return
        left = f"{duration(metrics['seconds_left'])} left" if "seconds_left" in metrics else ""
        shown = {name: value for name, value in metrics.items() if name not in ("grad_norm", "seconds_left")}
        self.progress.update(
            self.task,
            completed=metrics["progress_ratio"],
            description=f"step {step:,}",
            figures=" | ".join(_figures(shown)),
            left=left,
            refresh=self.progress.live.is_started,
        )
        self.progress.start()  # draws at once, and is nothing where it has started

    def close(self) -> None:
        self.progress.stop()


class Lines:
    """Training into a log file: a line per call."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the figures."""
        say(line(step, metrics))

    def close(self) -> None:
        """Holds nothing."""


def start() -> "Log":
    """Shows the figures of a run as they come: as a bar where stderr is a terminal, else a line for each call."""
    return Bar() if _on_terminal() else Lines()


def line(step: int, metrics: Mapping[str, float]) -> str:
    """Puts figures into words, e.g. `step 120 (24 %) | loss 1.525115 | 850 queries/s | 2 min 10 s left`.

    Args:
        step: steps done.
        metrics: with progress_ratio, 0 to 1, the figures of a training step, of which the losses, the gradient's norm,
            rates, padding_ratio and seconds_left are shown; without it, all are.
    """
    share = f" ({100 * metrics['progress_ratio']:.0f} %)" if "progress_ratio" in metrics else ""
    parts = [f"step {step:,}{share}", *_figures(metrics)]
    if "progress_ratio" not in metrics:
        parts += [f"{name} {number(value)}" for name, value in metrics.items() if not _is_known(name)]
    if "seconds_left" in metrics:
        parts.append(f"{duration(metrics['seconds_left'])} left")
    return " | ".join(parts)


def duration(seconds: float) -> str:
    """Rounds a time to two units: 45 s, 2 min 10 s, 3 h 5 min, 2 d 4 h."""
    if not 0 <= seconds < float("inf"):
        return "unknown time"
    whole = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {smaller_name}"
    return f"{whole} s"


def number(value: str | float) -> str:
    """Writes counts with thousands separators and other numbers to 4 digits after the point; text stays."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3e}" if 0 < abs(value) < 0.001 else f"{value:,.4f}"


def say(text: str) -> None:
    """Prints one line to stderr, above a bar if there is one."""
    print(text, file=sys.stderr, flush=True)


def show(title: str, rows: Mapping[str, str]) -> None:
    """Prints to stderr what will happen: a title, then a name and a value on each line."""
    width = max(map(cell_len, rows), default=0)
    say("\n".join([title, *(f"  {_pad(name, width)}  {value}".rstrip() for name, value in rows.items())]))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Prints results to stdout, aligned with spaces, and as wide as they are.

    Args:
        title: the line above.
        columns: heads.
        rows: as many values each as there are columns; numbers stand to the right.

    Raises:
        ValueError: a row has more or fewer values than there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{title}: a row has {len(row)} values for {len(columns)} columns: {list(row)}")
    texts = [list(columns), *([number(value) for value in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    is_text = [any(isinstance(row[place], str) for row in rows) for place in range(len(columns))]
    rule = ["-" * width for width in widths]
    print(title)
    for cells in (texts[0], rule, *texts[1:]):
        padded = (_pad(*each) for each in zip(cells, widths, is_text, strict=True))
        print(("  " + "  ".join(padded)).rstrip())
    sys.stdout.flush()


@contextmanager
def track(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far a job is: a bar on a terminal, else a line at most every 10 s.

    Args:
        description: what is done, e.g. "encode passages".
        total: pieces in all.

    Yields:
        advance(n): to be called when n more pieces are done.
    """
    begin = shown = time.monotonic()
    done = 0
    bar = _progress(transient=True) if _on_terminal() else None
    task = bar.add_task(description, total=total, figures="", left="") if bar else None

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        now = time.monotonic()
        if now - shown < (SECONDS_BETWEEN_FRAMES if bar else SECONDS_BETWEEN_LINES) and not (bar and done >= total):
            return
        shown = now
        left = f"{duration((now - begin) / done * (total - done))} left" if 0 < done <= total else ""
        if bar and task is not None:
            bar.update(task, completed=done, figures=f"{done:,} of {total:,}", left=left, refresh=True)
        else:
            share = f" ({100 * done / total:.0f} %)" if total else ""
            say(" | ".join(filter(None, [f"{description}: {done:,} of {total:,}{share}", left])))

    if bar is None:
        yield advance
    else:
        with bar:
            yield advance


def _figures(metrics: Mapping[str, float]) -> list[str]:
    """The figures of a training step that have their own form, in the order they are read."""
    losses = [name for name in metrics if name == "loss" or name.endswith("_loss")]
    parts = [f"{name} {metrics[name]:.6f}" for name in (*losses, "grad_norm") if name in metrics]
    # a large model takes less than one query a second
    rates = [(metrics[name], unit) for name, unit in UNITS.items() if name in metrics]
    parts += [f"{rate:,.{0 if rate >= 10 else 2}f} {unit}" for rate, unit in rates]
    if "padding_ratio" in metrics:
        parts.append(f"padding {100 * metrics['padding_ratio']:.0f} %")
    if "memory_gb" in metrics:
        parts.append(f"{metrics['memory_gb']:.2f} GB")
    return parts


def _is_known(name: str) -> bool:
    return name in ("grad_norm", "padding_ratio", "memory_gb", "seconds_left", *UNITS) or name == "loss" or name.endswith("_loss")


def _pad(text: str, width: int, left: bool = True) -> str:
    """Pads to `width` columns of a terminal, of which a Chinese character takes two."""
    space = " " * (width - cell_len(text))
    return text + space if left else space + text


def _on_terminal() -> bool:
    # rich alone would believe FORCE_COLOR, and draw bars into log files
    return sys.stderr.isatty() and not _screen().is_dumb_terminal


@cache
def _screen() -> Console:
    """The one console: a bar inside another must know of it."""
    return Console(stderr=True, force_terminal=True)


def _progress(transient: bool = False) -> Progress:
    # refreshed by the calls: a thread that draws ten frames a second would take time from training, and be forked
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:.0f} %"),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        console=_screen(),
        auto_refresh=False,
        transient=transient,
        expand=True,  # the figures alone give way where the terminal is narrow
    )
