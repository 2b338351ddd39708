"""stage=status: how runs stand, from what they leave in their folders, their locks, and SLURM's controller where jobs are."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import lock, output, owner
from bgetrain.cluster import queue, sbatch
from bgetrain.logger import console
from bgetrain.steps import Step, noted

COLUMNS = ("run", "state", "job", "progress", "losses", "time left")
DEEPEST = 3  # folders within folders that are looked into: a sweep over recipes has two
TAIL_BYTES = 65_536  # of metrics.jsonl and of a log that are read
WIDTH = 40  # letters of a reason that stand in the table; longer ones stand below
GOES_ON = "the same command goes on"


class Standing(NamedTuple):
    """How a run stands.

    Attributes:
        run: its folder, below the one asked for; of a recipe the step.
        state: done | running | queued | waiting | failed | interrupted | cancelled | not begun.
        why: the steps waited for, the error, the reason of the queue; "" where there is none.
        job: SLURM's id; None: it was never submitted.
        restarts: how often the job was requeued.
        step: of training, the last one logged; None: none was, or the run has no steps.
        total_steps: the last one to come.
        progress_ratio: from 0 to 1.
        figures: the last losses, or the scores of a run that has evaluated.
        seconds_left: of training, by its own reckoning.
        limit_seconds: until the job reaches its time limit; the run then goes on in the same job, requeued.
        output_dir: its folder.
    """

    run: str
    state: str
    why: str
    job: str | None
    restarts: int
    step: int | None
    total_steps: int | None
    progress_ratio: float | None
    figures: dict[str, float]
    seconds_left: float | None
    limit_seconds: float | None
    output_dir: str


class Run(NamedTuple):
    """A folder of a run.

    Attributes:
        name: in the table.
        step: of a recipe, or one without needs.
        needs: folders that it reads, of the same recipe, with their steps' names.
    """

    name: str
    step: Step
    needs: dict[str, str]


def run(cfg: Mapping[str, Any]) -> None:
    """Shows how the runs below `cfg.output_dir` stand.

    Args:
        cfg: the resolved config, as `conf/stage/status.yaml` has it.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """
    folder = Path(os.path.expanduser(cfg["output_dir"]))
    if not folder.is_dir():
        raise ValueError(f"output_dir={folder}: there is no such folder: nothing has run there, or been submitted")
    runs = list(found(folder, "", 0))
    if not runs:
        raise ValueError(f"output_dir={folder} holds no run, recipe or sweep")
    rows, fault = standings(runs)
    if cfg["format"] == "json":
        print(json.dumps([each._asdict() for each in rows], indent=1))
        return
    counts = {state: sum(each.state == state for each in rows) for state in dict.fromkeys(each.state for each in rows)}
    title = f"{folder}: {', '.join(f'{count} {state}' for state, count in counts.items())}"
    console.table(title, COLUMNS, [cells(each) for each in rows])
    for each in rows:
        if each.why not in state_cell(each):
            print(f"{each.run}: {each.why}")
    if fault:
        print(f"of jobs nothing is known: {fault}")


def found(folder: Path, name: str, depth: int) -> Iterator[Run]:
    """The runs in a folder: itself, the steps of a recipe, or what its folders hold."""
    known = noted(folder)
    if known:
        steps = {step.name: step for step in known[1]}
        for step in steps.values():
            needs = {steps[each].output_dir: each for each in step.needs if each in steps}
            yield Run(f"{name}/{step.name}".lstrip("/"), step, needs)
        return
    ours = (folder / "config.yaml").is_file() or (folder / "job.sbatch").is_file() or queue.submitted(str(folder))
    if ours and not is_array(folder):
        yield Run(name or folder.resolve().name, Step(folder.name, [], str(folder), []), {})
        return
    if depth < DEEPEST:
        for below in sorted((each for each in folder.iterdir() if each.is_dir()), key=lambda each: in_order(each.name)):
            yield from found(below, f"{name}/{below.name}".lstrip("/"), depth + 1)


def is_array(folder: Path) -> bool:
    """Whether a folder holds the script of a sweep's array, whose tasks are in folders of their own."""
    return (folder / sbatch.TASKS).is_file()


def in_order(name: str) -> list[tuple[int, str]]:
    """2 before 10."""
    return [(int(digits), "") if digits else (0, text) for digits, text in re.findall(r"(\d+)|(\D+)", name)]


def standings(runs: list[Run]) -> tuple[list[Standing], str]:
    """How runs stand, and why nothing is known of their jobs; "" where it is."""
    ids = {each.step.output_dir: queue.submitted(each.step.output_dir) for each in runs}
    open_ids = [id for folder, id in ids.items() if id and not (Path(folder) / "result.json").exists()]
    jobs: dict[str, queue.Job] = {}
    fault = ""
    try:
        jobs = queue.jobs(open_ids) if open_ids else {}
    except ValueError as error:
        fault = str(error)
    rows: dict[str, Standing] = {}
    for each in runs:
        id = ids[each.step.output_dir]
        rows[each.step.output_dir] = standing(each, id, jobs.get(id or ""), rows)
    return list(rows.values()), fault


def standing(run: Run, id: str | None, job: queue.Job | None, earlier: Mapping[str, Standing]) -> Standing:
    """How one run stands.

    Args:
        run: the folder.
        id: of the job last submitted for it.
        job: as the controller shows it; None: there is none, it is not needed, or the controller cannot be asked.
        earlier: folder -> how it stands, of the runs before.
    """
    folder = Path(run.step.output_dir)
    metrics = last_metrics(folder / "metrics.jsonl")
    state, why = state_of(run, folder, id, job, earlier)
    ratio, step = metrics.get("progress_ratio"), metrics.get("step")
    left = metrics.get("seconds_left")
    if left is not None:
        left = max(0.0, left - max(0.0, time.time() - (folder / "metrics.jsonl").stat().st_mtime)) if state == "running" else left
    losses = (name for name in metrics if name == "loss" or (name.endswith("_loss") and not name.startswith("held_out")))
    figures = {name: metrics[name] for name in losses if metrics[name] is not None}
    if state == "done":
        ratio, left = 1.0, None
        figures = scores(folder) or figures
    return Standing(
        run=run.name,
        state=state,
        why=why,
        job=id,
        restarts=job.restarts if job else 0,
        step=step,
        total_steps=round(step / metrics["progress_ratio"]) if step and metrics.get("progress_ratio") else None,
        progress_ratio=ratio,
        figures=figures,
        seconds_left=left if state != "not begun" else None,
        limit_seconds=job.seconds_left if job and state == "running" else None,
        output_dir=str(folder),
    )


def state_of(run: Run, folder: Path, id: str | None, job: queue.Job | None, earlier: Mapping[str, Standing]) -> tuple[str, str]:
    """The state of a run, and why."""
    if (folder / "result.json").is_file():
        return "done", ""
    holder = lock.holder(str(folder))
    if holder:
        return "running", "" if job else owner.words(holder)
    open_needs = [name for place, name in run.needs.items() if place in earlier and earlier[place].state != "done"]
    if job and job.state == "PENDING" and job.reason == queue.NEVER:  # on a site that leaves such jobs in the queue
        return "cancelled", f"never starts: {blamed(open_needs, earlier, run)}"
    if job and not job.is_over:
        if job.state != "PENDING":
            return "running", "" if job.state == "RUNNING" else job.state.lower()
        return (
            ("waiting", f"for {' and '.join(open_needs)}")
            if job.reason == "Dependency" and open_needs
            else ("queued", job.reason)
        )
    begun = any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "provenance.json"))
    log = queue.log(str(folder))
    if id and job is None and not log:
        return "queued", "or not: SLURM cannot be asked"
    forgotten = job is not None and job.state == "UNKNOWN"
    if job and (job.state == "CANCELLED" or (forgotten and not log and not begun)):
        by_chain = open_needs and (forgotten or job.reason in (queue.NEVER, "Dependency"))
        return "cancelled", blamed(open_needs, earlier, run) if by_chain else f"by a person or the site; {GOES_ON}"
    if id and (log or (job and not forgotten)):
        word = job.state.lower().replace("_", " ") if job and job.state not in ("FAILED", "UNKNOWN", "COMPLETED") else ""
        return "failed", ": ".join(filter(None, (word, last_error(log) if log else "")))
    return ("interrupted", GOES_ON) if begun else ("not begun", "")


def blamed(names: list[str], earlier: Mapping[str, Standing], run: Run) -> str:
    """Which of the steps that a job waited for has not ended well."""
    states = {name: earlier[place].state for place, name in run.needs.items() if place in earlier}
    told = [f"{name} {'was cancelled' if states.get(name) == 'cancelled' else 'has failed'}" for name in names]
    return " and ".join(told) if told else "what it waited for has failed"


def last_metrics(path: Path) -> dict[str, Any]:
    """The last line of metrics.jsonl that is of a training step; nothing where there is none."""
    for line in reversed(tail(path)):
        try:
            figures = json.loads(line)
        except ValueError:  # cut off: it is being written, or the tail begins in it
            continue
        if isinstance(figures, dict) and figures.get("progress_ratio") is not None and isinstance(figures.get("step"), int):
            return figures
    return {}


def tail(path: Path) -> list[str]:
    """The last lines of a file; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode("utf8", "replace").splitlines()
    except OSError:
        return []


def last_error(log: Path) -> str:
    """The last line of a job's log that tells of an error: our own, else Python's, else SLURM's."""
    lines = [line.strip() for line in tail(log)]
    for pattern in (r"bgetrain: \S", r"([\w.]+(Error|Exception|Interrupt))\b(:|$)", r"(slurmstepd|srun|sbatch): error: "):
        told = [line for line in lines if re.match(rf"(\[rank \d+\]:? ?|\d+: )?{pattern}", line)]
        if told:
            return told[-1].removeprefix("bgetrain: ")
    return next((line for line in reversed(lines) if line), "")


def scores(folder: Path) -> dict[str, float]:
    """What an evaluation has found, by its first metric."""
    try:
        metrics = output.result(str(folder)).get("metrics") or {}
    except ValueError:
        return {}
    return {name: value for name, value in metrics.items() if name == "ndcg@10"}


def cells(row: Standing) -> list[str]:
    """A row of the table."""
    progress = ""
    if row.step is not None and row.state != "done":
        progress = f"{row.step:,} of {row.total_steps:,} ({100 * (row.progress_ratio or 0):.0f} %)"
    elif row.step is not None:
        progress = f"{row.step:,} steps"
    job = "" if row.job is None else f"{row.job} ({row.restarts} restart{'s' * (row.restarts != 1)})" if row.restarts else row.job
    left = "" if row.seconds_left is None or row.state == "done" else console.duration(row.seconds_left)
    if row.limit_seconds is not None:
        left = f"{left}, limit in {console.duration(row.limit_seconds)}".lstrip(", ")
    figures = ", ".join(f"{name} {value:.4f}" for name, value in row.figures.items())
    return [row.run, state_cell(row), job, progress, figures, left]


def state_cell(row: Standing) -> str:
    """State and reason, where that is short."""
    if row.state == "waiting":
        return f"waiting {row.why}"
    return f"{row.state}: {row.why}" if 0 < len(row.why) <= WIDTH else row.state
