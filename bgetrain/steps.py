"""The steps of a recipe however they are run: which are done, what is noted of them in the folder, and the ladder at the end."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import output, overrides

NOTE = "steps.json"  # in a recipe's folder
RUNG = "evaluate-"  # steps whose name begins so are the rungs of the ladder
SEARCHED = ("precision", "chunk_tokens", "embeddings_cache")  # keys of an evaluation that stage=search has too


class Step(NamedTuple):
    """One step, ready to run.

    Attributes:
        name: in the recipe.
        overrides: complete; as a command line they do the same.
        output_dir: where its outputs go.
        needs: names of the steps whose folders it reads.
    """

    name: str
    overrides: list[str]
    output_dir: str
    needs: list[str]


def done(step: Step) -> bool:
    return (Path(step.output_dir) / "result.json").exists()


def outdated(step: Step, steps: Sequence[Step]) -> bool:
    """Whether a step that it reads has finished after this one did."""
    if not done(step):
        return False
    needed = [other for other in steps if other.name in step.needs]
    finished = output.result(step.output_dir).get("finished_at", 0.0)
    return any(output.result(other.output_dir).get("finished_at", 0.0) > finished for other in needed if done(other))


def note(folder: str, name: str, steps: Sequence[Step], submitted: Mapping[str, Sequence[str]]) -> None:
    """Writes into a recipe's folder which steps it has.

    Args:
        folder: of the recipe.
        name: of the recipe.
        steps: all of it.
        submitted: step -> the overrides under which it was last submitted as a job; none where this process runs them.

    Raises:
        ValueError: the folder cannot be written.
    """
    # without overrides but those of jobs, which may hold no secret (rules.py)
    rows = [{"name": step.name, "needs": step.needs, "submitted": submitted.get(step.name)} for step in steps]
    try:
        output.write(Path(folder) / NOTE, json.dumps({"recipe": name, "steps": rows}, indent=1))
    except OSError as error:
        raise ValueError(f"output_dir={folder}: cannot write here: {error.strerror}") from error


def noted(folder: str | Path) -> tuple[str, list[Step], dict[str, list[str]]] | None:
    """Name of the recipe in a folder, its steps without overrides, and those submitted with theirs; None where there is none."""
    try:
        known = json.loads((Path(folder) / NOTE).read_text("utf8"))
        # a recipe's folder may have been moved: its steps are beside the note
        steps = [Step(str(row["name"]), [], str(Path(folder) / row["name"]), list(row["needs"])) for row in known["steps"]]
        return str(known["recipe"]), steps, {row["name"]: row["submitted"] for row in known["steps"] if row["submitted"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def conclude(output_dir: str) -> None:
    """Writes the recipe's result where the job of the step in `output_dir` was the last of a chain to be done.

    Every job of a chain asks at its end: whichever ends last finds all done, in any order and however often one was
    requeued, and no job has to wait for steps that it does not read.
    """
    folder = Path(output_dir).absolute().parent
    found = noted(folder)
    if found is None:
        return
    name, steps, submitted = found
    if Path(output_dir).name not in submitted or not all(map(done, steps)):
        return
    last = max(output.result(step.output_dir).get("finished_at", 0.0) for step in steps)
    if not done(Step(name, [], str(folder), [])) or output.result(str(folder)).get("finished_at", 0.0) < last:
        report(name, str(folder), [step._replace(overrides=submitted.get(step.name, [])) for step in steps], None)


def report(name: str, folder: str, steps: Sequence[Step], seconds: float | None) -> None:
    """Writes the recipe's `result.json` and shows the ladder of its evaluations."""
    from bgetrain.logger import console
    from bgetrain.report import ladder as page
    from bgetrain.report.safely import safely

    results: dict[str, dict[str, Any]] = {step.name: output.result(step.output_dir) for step in steps}
    rungs = [step for step in steps if results[step.name].get("metrics") is not None and results[step.name]["stage"] != "export"]
    ladder = [{"step": step.name.removeprefix(RUNG), **results[step.name]["metrics"]} for step in rungs]
    bm25 = next((results[step.name]["bm25"] for step in rungs if "bm25" in results[step.name]), None)
    figures = {"steps": results, "ladder": ladder, **({"bm25": bm25} if bm25 else {})}
    output.finish(folder, f"recipe {name}", figures)
    safely("report.html", page.write, Path(folder))
    if ladder:
        columns = ["ndcg@10", "mrr@10", "recall@100"]
        rows = [[rung["step"], *(rung.get(column, "-") for column in columns)] for rung in ladder]
        if bm25:
            rows.append(["BM25", *(bm25[column] for column in columns)])
        took = "" if seconds is None else f": {seconds / 60:.1f} min"
        console.table(f"{name}{took}", ["", *columns], rows)
    models = [step for step in steps if (Path(step.output_dir) / "model").is_dir()]
    if models:
        own = "data=text 'data.files=[FILE.jsonl]'"
        print(f"Your model is {models[-1].output_dir}/model. Search with it, as here, or texts of your own with {own}:")
        print(f"  {shlex.join([program(), *search(steps, models[-1])])}")


def search(steps: Sequence[Step], trained: Step) -> list[str]:
    """The overrides that search what the recipe was evaluated on last; where nothing was, what the model was trained on.

    Args:
        steps: of the recipe.
        trained: the step whose model searches.
    """
    evaluated = [step for step in steps if "stage=evaluate" in step.overrides]

    def is_kept(override: str) -> bool:
        key = override.lstrip("+~").partition("=")[0]
        of_data = key == "data" or (key.startswith("data.") and key != "data.split")
        return of_data or key in SEARCHED or (key.startswith("model.") and key != "model.path" and bool(evaluated))

    model = overrides.quoted("model.path", f"{trained.output_dir}/model")
    return ["stage=search", model, *filter(is_kept, (evaluated or [trained])[-1].overrides)]


def program() -> str:
    """What one types to run this program: its name, or its path where the environment's programs are not on PATH."""
    script, found = Path(sys.executable).with_name("bgetrain"), shutil.which("bgetrain")
    if found and os.path.realpath(found) == os.path.realpath(script):
        return "bgetrain"
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)
