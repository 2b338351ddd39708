"""The page of a run: `report.html`, one file without scripts, and nothing in it from the network."""

import base64
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bgetrain import output
from bgetrain.logger import console, page
from bgetrain.report import drawings, read, series, sessions, settings, tables
from bgetrain.report.read import Run, is_number, mapping

OWN_PAGE = ("check",)  # stages that write a page of their own
PICTURES = ("scores.png", "similarity.png")  # which stages leave
LARGEST = 200_000  # bytes of a drawing that is taken into the page
READ = 3  # queries that are open to read
LISTED = 30  # negatives or queries in all
ABOVE = ("stage", "status", "finished_at")  # of a result: they stand at the top
NOTES = {"running": "still going", "unfinished": "not finished; the same command goes on"}
FILES = {
    "metrics.jsonl": "every figure as logged",
    "examples.md": "examples of what was mined",
    "result.json": "the figures at the end",
    "config.yaml": "the config",
    "provenance.json": "versions and fingerprints",
    "report.json": "the stage's own report",
}


def write(folder: Path) -> None:
    """Writes `report.html` into the folder of a run, whatever its state.

    Args:
        folder: of the run.

    Raises:
        ValueError: it is no folder of a run.
        OSError: it cannot be written.
    """
    found = read.run(folder)
    if found.stage in OWN_PAGE:
        return
    made = page.environment(Path(__file__).parent)
    output.write(found.folder / "report.html", made.get_template("run.html").render(**contents(found)))


def contents(run: Run) -> dict[str, Any]:
    """What the template shows."""
    best = series.best_step(run.steps, run.result, mapping(run.config.get("evaluate")).get("metric"))
    is_training = "training" in run.result  # whose curves say more than the figures at the end
    figures = {} if is_training else {name: value for name, value in run.result.items() if name not in ABOVE}
    return {
        "stage": run.stage,
        "name": run.folder.name,
        "state": run.state,
        "note": NOTES.get(run.state, ""),
        "recipe": settings.recipe_of(run),
        "parents": settings.parents(run),
        "heads": heads(run, best),
        "ran": ran(run),
        **told(run),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        "drawn": drawings.curves(run, best),
        "best": best,
        "figures": tables.of(figures, "Figures"),
        "last": tables.of(mapping(run.result.get("training")), ""),
        "reported": tables.of(run.report, ""),
        "drawings": [(name, data) for name in PICTURES if (data := embedded(run.folder / name))],
        "similarity": drawings.similarity(run.examples),
        "examples": reading(run.examples),
        "kept": kept(run),
        "read": READ,
        "data": fingerprints(run.provenance),
        "packages": mapping(run.provenance.get("packages")),
        "platform": {name: run.provenance.get(name) for name in ("python", "platform", "git") if run.provenance.get(name)},
        "written": moment(time.time()),
        "files": [(name, what) for name, what in FILES.items() if (run.folder / name).is_file()],
    }


def kept(run: Run) -> tuple[int, int] | None:
    """The step whose weights are in `model/` and the last one, whose similarities are shown; None: they are the same."""
    told, asked = mapping(run.result.get("training")), mapping(run.config.get("evaluate"))
    if asked.get("every") is None or asked.get("model") != "best" or not is_number(told.get("best_step")):
        return None  # stage/results.py's rule
    known = (run.result.get("steps"), told.get("steps"), *(line["step"] for line in run.steps[-1:]))
    best, last = int(told["best_step"]), next((int(each) for each in known if is_number(each)), None)
    return (best, last) if best and last is not None and best != last else None


def told(run: Run) -> dict[str, Any]:
    """The command and what differs from the defaults; of a stage that is not known here, neither."""
    try:
        chosen, differences = settings.changed(run)
    except ValueError:
        return {"command": None, "changes": []}
    rows = [(each.key, shown(each.new), "" if each.old == output.UNSET else shown(each.old)) for each in differences]
    return {"command": settings.command(run, chosen, differences), "changes": rows}


def shown(value: Any) -> str:
    return output.short(
        value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    )


def heads(run: Run, best: int | None) -> list[tuple[str, str]]:
    """The few figures at the top: value, what it is."""
    last: Mapping[str, Any] = run.steps[-1] if run.steps else {}
    found = [({"done": "done", "running": "running"}.get(run.state, "unfinished"), "status")]
    took = sessions.seconds(run.provenance, run.result)
    begun = sessions.of(run.provenance)
    if took is not None:
        found.append(
            (console.duration(took), "time" if len(begun) < 2 else f"time, in {len(begun)} sessions with what is between")
        )
    if run.steps:
        share = last.get("progress_ratio")
        total = round(last["step"] / share) if is_number(share) and share else None
        steps = f"{last['step']:,}" if run.state == "done" or not total else f"{last['step']:,} of {total:,}"
        found.append((steps, "steps"))
        if is_number(last.get("loss")):
            found.append((console.number(float(last["loss"])), "last loss"))
    if best is not None:
        found.append((f"{best:,}", "best step"))
    metrics = mapping(run.result.get("metrics"))
    found += [(f"{metrics[name]:.4f}", name) for name in ("ndcg@10", "mrr@10", "recall@100") if is_number(metrics.get(name))]
    found += [
        (tables.shown(run.result[name]), tables.words(name)) for name in ("rows", "texts", "vocabulary") if name in run.result
    ]
    return found


def ran(run: Run) -> list[tuple[str, str]]:
    """What ran on what: name, value."""
    begun = sessions.of(run.provenance)
    device = str(begun[-1].get("device", "")) if begun else ""
    precision = str(run.config.get("precision", ""))
    if precision == "auto" and device == "cpu":
        precision = "auto: fp32 on a CPU"  # stage/build.py's rule
    model, data = mapping(run.config.get("model")), mapping(run.config.get("data"))
    names = [data.get("path"), data.get("files"), data.get("name"), list(mapping(data.get("sources")))]
    names = [", ".join(map(str, each)) if isinstance(each, list) else each for each in names]
    found = {
        "stage": run.stage,
        "model": str(model.get("path") or str(model.get("_target_", "")).rpartition(".")[2]),
        "data": output.short(next((each for each in names if each), None) or str(data.get("_target_", "")).rpartition(".")[2]),
        "ranks": " then ".join(dict.fromkeys(f"{each.get('ranks')} ({each.get('device')})" for each in begun)),
        "precision": precision,
        "seed": str(run.config.get("seed", "")),
        "began": moment(begun[0].get("began_at")) if begun else "",
        "ended": moment(run.result.get("finished_at")),
    }
    return [(name, value) for name, value in found.items() if value]


def moment(seconds: Any) -> str:
    """A moment in the time of this machine; "" for what is none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if is_number(seconds) and math.isfinite(seconds) else ""


def embedded(path: Path) -> str | None:
    """A drawing as an address that holds it; None: there is none, or it is too large."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}" if 0 < len(data) <= LARGEST else None


def reading(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `examples.json` has to read; rows that are not of its form are left out."""

    def rows(name: str) -> list[dict[str, Any]]:
        listed = found.get(name)
        return (
            [mapping(each) for each in listed if isinstance(each, Mapping) and "query" in each][:LISTED]
            if isinstance(listed, list)
            else []
        )

    queries = [{**each, "found": [mapping(one) for one in each.get("found") or []]} for each in rows("worst_queries")]
    return {"of": found.get("of"), "negatives": rows("hardest_negatives"), "queries": queries}


def fingerprints(provenance: Mapping[str, Any]) -> list[tables.Table]:
    """Files of data and model with their sizes and fingerprints."""
    made = []
    for kind in ("data", "model"):
        rows = [[name, *(f"{key.replace('_', ' ')} {value}" for key, value in mapping(each).items())] if isinstance(each, Mapping)
                else [name, json.dumps(each)] for name, each in mapping(provenance.get(kind)).items()]  # fmt: skip
        if rows:
            made.append(tables.table(f"files of the {kind}", [], [[row[0], ", ".join(row[1:])] for row in rows]))
    return made
