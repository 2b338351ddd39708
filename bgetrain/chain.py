"""A recipe under SLURM: a job for each step that is not done, which waits for those whose folders it reads.

Jobs make a graph, not a line: a step waits for the steps that it names as `${step}`, and for no others. What steps share
besides are caches of rows, of docstrings and of embeddings, and these bear two runs at once: rows are read under a lock, all
of them are written beside their place and moved there when whole. Two steps that begin together may do the same work twice,
which costs less than an evaluation that holds up the training behind it.
"""

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import config, lock, output
from bgetrain.cluster import queue, sbatch, slurm, srun
from bgetrain.cluster.local import is_first, say
from bgetrain.cluster.place import Command
from bgetrain.steps import Step, done, note, noted, outdated, report


class Link(NamedTuple):
    """A step in the chain.

    Attributes:
        step: of the recipe.
        cfg: its config, plain.
        job: queued or running for its folder; None: none is.
        due: "done", "kept" where `job` will do it, "submit", or "anew" to submit it from its beginning.
    """

    step: Step
    cfg: dict[str, Any]
    job: queue.Job | None
    due: str


def is_wanted(steps: Sequence[Step]) -> bool:
    """Whether steps are to be submitted: they are for SLURM, and this process has no nodes of it to run them on.

    Raises:
        ValueError: some steps are for SLURM and others are not.
    """
    chosen = any(each.startswith("cluster=") for step in steps for each in step.overrides)
    if srun.in_allocation() or not chosen:
        return False
    others = [step.name for step in steps if not slurm.is_chosen(plain(step)["cluster"])]
    if 0 < len(others) < len(steps):
        raise ValueError(f"step {others[0]} is not for cluster=slurm where others are: give cluster=NAME for all of them")
    return not others


def submit(name: str, folder: str, steps: Sequence[Step], first_anew: int, *, dry_run: bool) -> int:
    """Submits the steps that are not done and have no job yet; returns the exit status.

    Args:
        name: of the recipe.
        folder: of the recipe.
        steps: in order.
        first_anew: number of the step from which all begin anew.
        dry_run: write the scripts, and print how they would be submitted.

    Raises:
        ValueError: a step that cannot be submitted; what was submitted before it stays, and is named.
    """
    known = noted(folder)
    links = due(steps, first_anew, known[2] if known else {})
    if all(link.due == "done" for link in links):
        if dry_run:
            say(f"# all {len(links)} steps are done: nothing is to be submitted")
        elif is_first():
            report(name, folder, steps, None)
        return 0
    submitted = {step: words for step, words in (known[2] if known else {}).items() if step in {each.name for each in steps}}
    if dry_run:
        by_hand = {link.step.name: list(link.step.overrides) for link in links if link.due in ("submit", "anew")}
        note(folder, name, steps, {**submitted, **by_hand})  # for the job that ends last, though a shell has submitted it
        return show(links, name)
    ids: dict[str, str] = {}
    new: list[str] = []
    for number, link in enumerate(links, 1):
        step, place = link.step, f"[{number}/{len(links)}] {link.step.name}"
        if link.due == "done":
            say(f"{place}: already done")
            continue
        if link.due == "kept":
            assert link.job is not None
            ids[step.name] = link.job.id
            say(f"{place}: job {link.job.id} is there already, {link.job.words}")
            continue
        after = [ids[other] for other in step.needs if other in ids]
        try:
            ids[step.name] = queue.submit(written(link, name), step.overrides, after=after, hold=link.due == "anew")
            begin_anew(link, ids[step.name])
        except ValueError as error:
            there = f"submitted before it, and kept: {', '.join(new)}" if new else "nothing was submitted before it"
            again = "the same command goes on" if first_anew == len(links) else "the same command without from= goes on"
            raise ValueError(f"recipe={name}, step {step.name}: {error}; {there}; {again}") from error
        submitted[step.name] = list(step.overrides)
        note(folder, name, steps, submitted)  # each time: where the next one is refused, this one is known
        new.append(f"{step.name} (job {ids[step.name]})")
        waits = f" after {' and '.join(after)}" if after else ""
        say(f"{place}: job {ids[step.name]}{waits}, {size(link)}")
    say(f"how they stand: bgetrain stage=status output_dir={shlex.quote(folder)}")
    if new:
        say(f"to cancel them: scancel {' '.join(ids.values())}")
    return 0


def due(steps: Sequence[Step], first_anew: int, submitted: Mapping[str, Sequence[str]]) -> list[Link]:
    """What is to be done about each step.

    Args:
        steps: in order.
        first_anew: number of the step from which all begin anew.
        submitted: step -> the overrides of its last job.

    Raises:
        ValueError: another process works in a step's folder, or a job waits to do so that has other values, is to begin anew,
            or reads what a new job will make; or a job is about to end.
    """
    ids = {step.name: queue.submitted(step.output_dir) for step in steps}
    asked = [each for each in ids.values() if each]
    jobs = queue.jobs(asked) if asked else {}
    links: list[Link] = []
    moving: set[str] = set()  # steps whose outputs will change
    new: set[str] = set()  # those of them that get a new job
    for number, step in enumerate(steps):
        job = jobs.get(ids[step.name] or "")
        job = None if job is None or job.is_over else job
        is_done = done(step)
        if not is_done or number >= first_anew:  # a job that has written its result may be ending
            job = standing(step, job)
        if job:
            try:
                queue.check(job, submitted.get(step.name), step.overrides)
            except ValueError as error:
                raise ValueError(f"step {step.name}: {error}") from error
        if is_done:
            stays = number < first_anew and not outdated(step, steps) and not moving & set(step.needs)
            what = "done" if stays else "anew"
        else:
            what = "anew" if number >= first_anew else "kept" if job and not new & set(step.needs) else "submit"
        if job and what in ("submit", "anew"):  # it would read, or write, what is emptied or made again
            raise ValueError(f"step {step.name}: {in_the_way(job, [each for each in step.needs if each in new])}")
        if what in ("submit", "anew"):
            lock.check(step.output_dir)
            new.add(step.name)
        if what != "done":
            moving.add(step.name)
        links.append(Link(step, plain(step), job, what))
    return links


def standing(step: Step, job: queue.Job | None) -> queue.Job | None:
    try:
        return queue.standing(job)
    except ValueError as error:
        raise ValueError(f"step {step.name}: {error}") from error


def in_the_way(job: queue.Job, needs: Sequence[str]) -> str:
    """Says that a job must be cancelled before its step is submitted again, since `needs` are, or it is to begin anew."""
    why = f"waits for an earlier job of {' and '.join(needs)}, which is to be made again" if needs else "is to begin anew"
    return f"job {job.id}, {job.words}, {why}: scancel {job.id} first"


def begin_anew(link: Link, id: str) -> None:
    """Empties the folder of a step that is to begin anew, and lets its job, which was held, start.

    Once, for a job that was requeued must not do so each time; and not before SLURM has taken the job, for one that it refuses
    must not cost what the folder holds.

    Raises:
        ValueError: the folder cannot be emptied, and the job is cancelled; or the job cannot be released.
    """
    if link.due != "anew":
        return
    try:
        with lock.held(link.step.output_dir):
            output.claim({**link.cfg, "resume": "never"})
    except BaseException:  # an interrupt as well: it would be held for good
        with contextlib.suppress(ValueError):
            queue.cancel(id)
        raise
    try:
        queue.release(id)
    except ValueError as error:
        raise ValueError(f"{error}; job {id} is held, and its folder is empty: scontrol release {id}") from error


def written(link: Link, name: str, *, by_hand: bool = False) -> Path:
    """Writes the step's job.sbatch, under the name of the recipe and its own in the queue; returns its path.

    One that is to be submitted by hand empties the folder of a step that begins anew when it first starts (sbatch.py).
    """
    request = link.cfg["cluster"]
    asked = {**request, "job_name": request["job_name"] or f"{name}-{link.step.name}"}
    return sbatch.write(command_of(link, *(["resume=never"] if by_hand and link.due == "anew" else [])), asked)


def command_of(link: Link, *more: str) -> Command:
    """The command of a step."""
    cfg = link.cfg
    return Command([*link.step.overrides, *more], cfg["stage"]["name"], cfg["output_dir"], cfg["num_processes"], False)


def size(link: Link) -> str:
    """The size of a step's job as it is asked for: a stage of one process gets no more, whatever the others have."""
    return sbatch.size(command_of(link), link.cfg["cluster"])


def show(links: Sequence[Link], name: str) -> int:
    """Writes the scripts, and prints the lines of shell that submit them; returns the exit status."""
    for link in links:
        if link.due in ("done", "kept"):
            why = "done already" if link.due == "done" else f"job {link.job.id if link.job else ''} is there already"
            say(f"# {link.step.name}: {why}")
            continue
        by_name = {each.step.name: each for each in links}
        after = [variable(by_name[other]) for other in link.step.needs if by_name[other].due != "done"]
        # the ids that sbatch will print stand as variables of the shell, which quotes would hide
        line = queue.line(written(link, name, by_hand=True), after=after)
        words = " ".join(word if word.startswith("--dependency=") else shlex.quote(word) for word in line)
        say(f"{re.sub(r'[^A-Za-z0-9_]', '_', f'job_{link.step.name}')}=$({words})")
    return 0


def variable(link: Link) -> str:
    """The id of a job in the lines of a dry run."""
    return link.job.id if link.job else "$" + re.sub(r"[^A-Za-z0-9_]", "_", f"job_{link.step.name}")


def plain(step: Step) -> dict[str, Any]:
    return composed(tuple(step.overrides))


@cache
def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The config of a step, plain, once for all who ask; not to be changed."""
    return config.plain(overrides)
