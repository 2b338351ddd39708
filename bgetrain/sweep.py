"""A sweep: the same command under each combination of the values listed; one after the other, or as job arrays under SLURM."""

import itertools
import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import config, lock, output, overrides, recipe, selection, trust
from bgetrain.cluster import queue, sbatch, slurm, srun
from bgetrain.cluster.local import INTERRUPTED, say
from bgetrain.cluster.place import Command


class Point(NamedTuple):
    """One combination.

    Attributes:
        arguments: its overrides, complete.
        told: those of them that the sweep has chosen.
        output_dir: where it writes to.
    """

    arguments: list[str]
    told: str
    output_dir: str


def run(
    arguments: Sequence[str], run_one: Callable[[Sequence[str]], int], refuse: Callable[[ValueError], int], *, dry_run: bool
) -> int:
    """Runs every combination, having checked all of them; returns the first bad status.

    Args:
        arguments: with lists of values.
        run_one: runs one combination, a recipe or a stage; returns its exit status.
        refuse: says an error of one, which the others survive; returns its exit status.
        dry_run: start nothing.
    """
    points = expanded(arguments)
    configs = [plain(point) for point in points]
    if not srun.in_allocation() and all(each and slurm.is_chosen(each["cluster"]) for each in configs):
        return submit(points, [each for each in configs if each], dry_run=dry_run)
    statuses = []
    for number, point in enumerate(points, 1):
        print(f"[{number}/{len(points)}] {point.told}", flush=True)
        try:
            statuses.append(run_one([*point.arguments, *(["dry_run=true"] if dry_run else [])]))
        except ValueError as error:
            statuses.append(refuse(error))
        if statuses[-1] == INTERRUPTED:
            break
    return next((status for status in statuses if status), 0)


def expanded(arguments: Sequence[str]) -> list[Point]:
    """The combinations, each checked and with a folder of its own.

    Raises:
        ValueError: one of them cannot run.
    """
    jobs = overrides.jobs(arguments, {group: selection.options(group) for group in selection.groups()})
    folders = [checked_folder(job) for job in jobs]
    if len(set(folders)) < len(jobs):  # unless the sweep itself parts them, each gets a folder by its number
        folders = [f"{folder}/{number}" for number, folder in enumerate(folders)]
    points = []
    for job, folder in zip(jobs, folders, strict=True):
        others = [each for each in job if not each.startswith("output_dir=")]
        told = trust.masked_text(" ".join(each for each in job if each not in arguments))
        points.append(Point([*others, overrides.quoted("output_dir", folder)], told, folder))
    return points


def checked_folder(job: Sequence[str]) -> str:
    """Composes one job of a sweep and returns the folder that it would write to.

    Raises:
        ValueError: the job cannot run.
    """
    if is_recipe(job):
        own, extras = recipe.split(job)
        recipe.plan(own["recipe"], recipe.folder_of(own), extras)
        return recipe.folder_of(own)
    return str(config.compose(job).output_dir)


def is_recipe(job: Sequence[str]) -> bool:
    return any(each.startswith("recipe=") for each in job)


def plain(point: Point) -> dict[str, Any] | None:
    """The config of a combination; None for a recipe, whose steps have one each."""
    if is_recipe(point.arguments):
        return None
    found = config.plain(point.arguments)
    return {**found, "output_dir": os.path.expanduser(found["output_dir"])}


def submit(points: Sequence[Point], configs: Sequence[dict[str, Any]], *, dry_run: bool) -> int:
    """Submits what is not done and has no job as job arrays, one for each size of job; returns the exit status.

    Raises:
        ValueError: a folder belongs to another run, or SLURM refuses.
    """
    ids = [queue.submitted(cfg["output_dir"]) for cfg in configs]
    asked = [each for each in ids if each]
    jobs = queue.jobs(asked) if asked else {}
    due: dict[str, list[tuple[Command, dict[str, Any]]]] = {}
    for number, (point, cfg, id) in enumerate(zip(points, configs, ids, strict=True), 1):
        place, job = f"[{number}/{len(points)}] {point.told}", jobs.get(id or "")
        if output.standing(cfg) == "done":
            say(f"{place}: already done")
        elif job := queue.standing(job):
            queue.check(job, queue.arguments(cfg["output_dir"]), point.arguments)
            say(f"{place}: job {job.id} is there already, {job.words}")
        else:
            lock.check(cfg["output_dir"])
            request = cfg["cluster"]
            command = Command(point.arguments, cfg["stage"]["name"], cfg["output_dir"], cfg["num_processes"], dry_run)
            due.setdefault(json.dumps(request), []).append((command, request))
    folder = Path(os.path.commonpath([os.path.dirname(os.path.abspath(cfg["output_dir"])) for cfg in configs]))
    for same in due.values():  # jobs of one array have one size
        array([command for command, _ in same], folder, same[0][1], dry_run)
    if due and not dry_run:
        say(f"how they stand: bgetrain stage=status output_dir={shlex.quote(str(folder))}")
    return 0


def array(commands: Sequence[Command], folder: Path, request: dict[str, Any], dry_run: bool) -> None:
    """Writes and submits one job array, in a folder of its own: tasks read it when they start, which may be weeks from now."""
    number = next(number for number in itertools.count(1) if not queue.submitted(f"{folder}/array-{number}"))
    script = sbatch.write_array(commands, folder / f"array-{number}", request)
    if dry_run:
        say(shlex.join(queue.line(script, array=len(commands), parallel=request["array_parallel"])))
        return
    id = queue.submit(script, array=len(commands), parallel=request["array_parallel"])
    for task, command in enumerate(commands):
        queue.note(command.output_dir, f"{id}_{task}", script, command.arguments)
    say(f"job {id}: an array of {len(commands)}, {sbatch.size(commands[0], request)} each; to cancel them: scancel {id}")
