"""A page of runs beside each other: what differs, their figures, and their curves on the same axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bgetrain import output
from bgetrain.logger import page
from bgetrain.report import plots, series
from bgetrain.report.read import Run, is_number
from bgetrain.report.tables import Table


def write(path: Path, runs: Mapping[str, Run], tables: Sequence[Table], notes: Sequence[str]) -> None:
    """Writes the page.

    Args:
        path: of the page; folders above it are made.
        runs: of one stage, by their names.
        tables: to show above the curves.
        notes: lines to show below the tables.

    Raises:
        OSError: it cannot be written.
    """
    contents = {
        "stage": next(iter(runs.values())).stage,
        "runs": [(name, str(run.folder), run.state) for name, run in runs.items()],
        "tables": [each._replace(rows=[list(map(str, row)) for row in each.rows]) for each in tables],
        "notes": list(notes),
        "pictures": drawn(dict(list(runs.items())[: series.LINES])),
        "left_out": list(runs)[series.LINES :],
    }
    output.write(path, page.environment(Path(__file__).parent).get_template("compare.html").render(**contents))


def drawn(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """A picture of each figure that was logged, with a curve of each run; a run has the same colour in all."""
    found: list[dict[str, Any]] = []
    for group in series.pictures([line for run in runs.values() for line in run.steps]):
        for name in group.names:
            title = group.title if len(group.names) == 1 else f"{name} (%)" if group.factor == 100.0 else name
            if not any(is_number(line.get(name)) for run in runs.values() for line in run.steps):
                continue
            curves = [series.curve(run.steps, name, group.factor) for run in runs.values()]
            svg = plots.curves(curves, name=f"compare-{len(found)}", label=f"{title} of {', '.join(runs)}", best=None)
            keys = [(run, "" if len(each.steps) else "(not logged)") for run, each in zip(runs, curves, strict=True)]
            found.append({"title": title, "names": keys, "best": None, "notes": [], "svg": svg})
    return found
