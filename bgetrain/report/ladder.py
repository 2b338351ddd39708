"""The page of a recipe: `report.html` with its ladder, and its steps with links to their pages."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bgetrain import lock, output, steps
from bgetrain.logger import console, page
from bgetrain.report import plots, read, sessions, tables
from bgetrain.report.read import is_number, mapping

DRAWN = ("ndcg@10", "mrr@10", "recall@100")  # of the ladder
LEXICAL = "bm25"


def write(folder: Path) -> None:
    """Writes `report.html` into the folder of a recipe, however many of its steps are done.

    Args:
        folder: of the recipe.

    Raises:
        ValueError: it is no folder of a recipe.
        OSError: it cannot be written.
    """
    folder = folder.absolute()
    found = steps.noted(folder)
    if found is None:
        raise ValueError(f"{folder} is not the folder of a recipe: it has no {steps.NOTE}")
    made = page.environment(Path(__file__).parent)
    output.write(folder / "report.html", made.get_template("ladder.html").render(**contents(folder, found[0], found[1])))


def contents(folder: Path, name: str, listed: Sequence[steps.Step]) -> dict[str, Any]:
    """What the template shows."""
    results = {step.name: read.of_json(Path(step.output_dir) / "result.json") for step in listed}
    rungs = [step.name for step in listed if numbers(results[step.name].get("metrics"))]
    bm25 = next((found for rung in rungs if (found := numbers(results[rung].get(LEXICAL)))), {})
    rows = [row(step, results[step.name]) for step in listed]
    done = sum(each["state"] == "done" for each in rows)
    took = [each["seconds"] for each in rows if each["seconds"] is not None]
    measured = dict.fromkeys(name for rung in rungs for name in numbers(results[rung]["metrics"]))
    measures = [*(name for name in DRAWN if name in measured), *(name for name in measured if name not in DRAWN)]
    ladder = [(rung.removeprefix(steps.RUNG), numbers(results[rung]["metrics"])) for rung in rungs]
    return {
        "name": name,
        "folder": str(folder),
        "state": "done" if done == len(rows) else "running" if any(each["state"] == "running" for each in rows) else "unfinished",
        "done": done,
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "rows": rows,
        "took": console.duration(sum(took)) if took else None,
        "timed": len(took),
        "heads": heads(ladder, bm25),
        "ladder": picture(ladder, bm25) if ladder else None,
        "table": table([*ladder, *([("BM25", bm25)] if bm25 else [])], measures) if ladder else None,
    }


def numbers(found: Any) -> dict[str, float]:
    """The figures of a mapping."""
    return {name: float(value) for name, value in mapping(found).items() if is_number(value)}


def row(step: steps.Step, result: Mapping[str, Any]) -> dict[str, Any]:
    """A step: its state, its time, what it found, where its page is."""
    folder = Path(step.output_dir)
    has_page = (folder / "report.html").is_file()
    begun = (folder / "config.yaml").is_file()
    busy = bool(lock.holder(str(folder))) if begun else False
    state = "done" if result.get("status") == "done" else "running" if busy else "unfinished" if begun else "not begun"
    seconds = sessions.seconds(read.of_json(folder / "provenance.json"), result)
    return {
        "name": step.name,
        "link": f"{quote(folder.name)}/report.html" if has_page else None,
        "state": state,
        "seconds": seconds,
        "time": console.duration(seconds) if seconds is not None else "",
        "figure": figure(result),
        "needs": step.needs,
    }


def figure(result: Mapping[str, Any]) -> str:
    """The one figure by which a step is known."""
    metrics, training = numbers(result.get("metrics")), numbers(result.get("training"))
    for found, name in ((metrics, "ndcg@10"), (training, "ndcg@10"), (training, "loss")):
        if name in found:
            return f"{name} {found[name]:.4f}"
    return next((f"{name} {tables.shown(result[name])}" for name in ("rows", "vocabulary") if name in result), "")


def heads(ladder: Sequence[tuple[str, Mapping[str, float]]], bm25: Mapping[str, float]) -> list[tuple[str, str]]:
    """The ladder's ends by the first measure that is drawn: value, what it is."""
    main = DRAWN[0]
    ends = [each for each in dict([*ladder[:1], *ladder[-1:]]).items() if main in each[1]]
    return [(f"{figures[main]:.4f}", f"{main}, {rung}") for rung, figures in [*ends, *([("BM25", bm25)] if main in bm25 else [])]]


def picture(ladder: Sequence[tuple[str, Mapping[str, float]]], bm25: Mapping[str, float]) -> dict[str, Any]:
    """Bars of each rung, and BM25 as a line."""
    drawn = [name for name in DRAWN if any(name in figures for _, figures in ladder)]
    drawn = drawn or list(dict.fromkeys(name for _, figures in ladder for name in figures))[: len(DRAWN)]
    series = {name: [figures.get(name, math.nan) for _, figures in ladder] for name in drawn}
    label = "; ".join(
        f"{rung}: {', '.join(f'{name} {figures[name]:.4f}' for name in drawn if name in figures)}" for rung, figures in ladder
    )
    lines = {name: bm25[name] for name in drawn[:1] if name in bm25}
    svg = plots.bars([rung for rung, _ in ladder], series, lines=lines, name="ladder", label=label, axis="score, from 0 to 1")
    notes = [f"dashed: BM25's {name}, {value:.4f}" for name, value in lines.items()]
    return {"title": "Ladder", "svg": svg, "names": [(name, "") for name in drawn], "notes": notes, "best": None}


def table(ladder: Sequence[tuple[str, Mapping[str, float]]], measures: Sequence[str]) -> tables.Table:
    rows = [[rung, *(f"{figures[name]:.4f}" if name in figures else "–" for name in measures)] for rung, figures in ladder]
    return tables.table("", ["", *measures], rows)
