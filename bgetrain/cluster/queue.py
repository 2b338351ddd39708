"""What is asked of SLURM's controller: to take a job, and how jobs stand."""

import json
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NOTE = "job.json"
OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"),
    *("TIMEOUT", "UNKNOWN"),
)
NEVER = "DependencyNeverSatisfied"  # the reason of a job that a site leaves in the queue, though its turn cannot come
# of squeue; a job's reason may hold anything, so it comes last
FIELDS = "JobArrayID:.64|,State:.32|,RestartCnt:.16|,TimeLeft:.32|,Reason:.256"
PATIENCE_SECONDS = 60  # for the controller to answer


class Job(NamedTuple):
    """A job as the controller shows it.

    Attributes:
        id: as printed, 123 or 123_4.
        state: SLURM's word, such as PENDING or RUNNING; UNKNOWN: the controller has forgotten it.
        reason: why it waits, or ended; empty where none is given.
        restarts: how often it was requeued.
        seconds_left: to its time limit; None: it does not run, or has no limit.
    """

    id: str
    state: str
    reason: str
    restarts: int
    seconds_left: float | None

    @property
    def is_over(self) -> bool:
        """Whether it will not run any more."""
        return self.state in OVER or (self.state == "PENDING" and self.reason == NEVER)

    @property
    def words(self) -> str:
        """Its state in small letters, with the reason where there is one."""
        return f"{self.state.lower()}{f' ({self.reason})' if self.reason else ''}"


def submit(
    script: Path,
    arguments: Sequence[str] | None = None,
    *,
    after: Sequence[str] = (),
    array: int | None = None,
    parallel: int | None = None,
    hold: bool = False,
) -> str:
    """Submits a script and returns the job's id, which it also notes in job.json beside the script.

    Args:
        script: job.sbatch.
        arguments: overrides of its run, to be noted; None: it has several runs.
        after: jobs that must have ended well (afterok); where one fails this one is cancelled.
        array: number of tasks of a job array, 0 to array - 1.
        parallel: tasks of the array that may run at once; None: any number.
        hold: it does not start before `release`.

    Raises:
        ValueError: sbatch is missing or refuses, with its own words.
    """
    answer = asked(line(script, after=after, array=array, parallel=parallel, hold=hold))
    found = re.fullmatch(r"(\d+)(;.*)?", answer.strip().rpartition("\n")[2])  # sites' own filters may print lines above
    if not found:
        raise ValueError(f"sbatch has answered {answer.strip()!r}, which is no job's number")
    note(script.parent, found[1], script, arguments)
    return found[1]


def release(id: str) -> None:
    """Lets a job start that was submitted to be held.

    Raises:
        ValueError: the controller refuses, in its own words.
    """
    asked(["scontrol", "release", id])


def cancel(id: str) -> None:
    """Takes a job out of the queue.

    Raises:
        ValueError: the controller refuses, in its own words.
    """
    asked(["scancel", id])


def line(
    script: Path, *, after: Sequence[str] = (), array: int | None = None, parallel: int | None = None, hold: bool = False
) -> list[str]:
    """The words of `submit` as one would type them."""
    words = ["sbatch", "--parsable", *["--hold"] * hold]
    if after:  # a site may leave jobs in the queue whose turn never comes
        words += [f"--dependency={':'.join(['afterok', *after])}", "--kill-on-invalid-dep=yes"]
    if array is not None:
        words.append(f"--array=0-{array - 1}{'' if parallel is None else f'%{parallel}'}")
    return [*words, str(script)]


def note(folder: str | Path, id: str, script: Path, arguments: Sequence[str] | None = None) -> None:
    """Notes in job.json of an output folder which job is to make the run in it.

    Args:
        folder: of the run.
        id: of the job, or of a task of an array.
        script: of the job; the log is beside it.
        arguments: overrides of the run, which hold no secret (rules.py); None: not known.
    """
    facts = {"id": id, "script": str(script), "submitted_at": time.time()}
    facts |= {} if arguments is None else {"arguments": list(arguments)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / NOTE).write_text(json.dumps(facts, indent=2) + "\n", "utf8")


def standing(job: Job | None) -> Job | None:
    """A job that is still to make its run; None: there is none.

    Raises:
        ValueError: it is about to end, and whether it is put back into the queue is not known yet.
    """
    if job is None or job.is_over:
        return None
    if job.state == "COMPLETING":
        raise ValueError(f"job {job.id} of this folder is ending: type the command again in a moment")
    return job


def check(job: Job, old: Sequence[str] | None, new: Sequence[str]) -> None:
    """Refuses overrides that are not those of a job that is still to make the run.

    Args:
        job: in the queue.
        old: the overrides of its run; None: not known, and taken for the same.
        new: those that are asked for; their order does not count.

    Raises:
        ValueError: some differ, which are named.
    """
    if old is None or sorted(old) == sorted(new):
        return
    gone, come = ([each for each in one if each not in other] for one, other in ((old, new), (new, old)))
    was = f" ({' '.join(gone)})" if gone else ""
    now = " ".join(come) or "without"
    raise ValueError(f"job {job.id}, {job.words}, is of other values{was}, now {now}: scancel {job.id} first")


class Noted(NamedTuple):
    """What `note` has written of a job.

    Attributes:
        id: of the job, or of a task of an array.
        script: of the job.
        arguments: overrides of its run; None: not known.
    """

    id: str
    script: Path
    arguments: list[str] | None


def noted(output_dir: str) -> Noted | None:
    """The job that was last submitted for a folder; None where there is none."""
    try:
        facts = json.loads((Path(output_dir) / NOTE).read_text("utf8"))
        known = facts.get("arguments")
        return Noted(str(facts["id"]), Path(facts["script"]), None if known is None else list(map(str, known)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a file of that name that is not ours
        return None


def arguments(output_dir: str) -> list[str] | None:
    """The overrides of the job that was last submitted for a folder; None where there is none, or they are not known."""
    found = noted(output_dir)
    return found and found.arguments


def submitted(output_dir: str) -> str | None:
    """The id of the job that was last submitted for a folder; None where there is none."""
    found = noted(output_dir)
    return found and found.id


def log(output_dir: str) -> Path | None:
    """What the job that was last submitted for a folder has written; None where there is none."""
    found = noted(output_dir)
    path = found and found.script.parent / f"slurm-{found.id}.out"
    return path if path and path.is_file() else None


def jobs(ids: Sequence[str]) -> dict[str, Job]:
    """How jobs stand, by id, in one call; those that the controller has forgotten are UNKNOWN.

    Of an array every task is told, and the array itself under its own id as the task that is furthest from its end.

    Raises:
        ValueError: the controller cannot be asked, with its own words.
    """
    if not ids:
        return {}
    words = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}", f"--Format={FIELDS}"]
    try:
        rows = asked(words).splitlines()
    except ValueError as error:
        if "Invalid job id" not in str(error):  # what squeue says where it knows none of several, or not the only one
            raise
        rows = []
    found = {job.id: job for job in map(read, filter(None, map(str.strip, rows)))}
    for id in ids:
        tasks = [job for job in found.values() if job.id.partition("_")[0] == id]
        if id not in found:
            found[id] = min(tasks, key=distance)._replace(id=id) if tasks else Job(id, "UNKNOWN", "", 0, None)
    return found


def distance(job: Job) -> tuple[bool, bool, bool]:
    """Orders tasks: what runs, what waits, what has failed, what is done."""
    return job.is_over, job.state != "RUNNING", job.state == "COMPLETED"


def read(row: str) -> Job:
    """One line of squeue's."""
    id, state, restarts, left, reason = (each.strip() for each in row.split("|", 4))
    seconds = seconds_of(left) if state == "RUNNING" else None
    return Job(id, state, "" if reason == "None" else reason, int(restarts or 0), seconds)


def seconds_of(time: str | int) -> float | None:
    """SLURM's minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S in seconds; None: what is none of them, such as UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time), re.ASCII)
    if not found:
        return None
    days, *parts = found.groups()
    first, second, third = (int(each or 0) for each in parts)
    if days is None and parts[2] is None:  # M or M:S
        return 60 * first + second
    return 86_400 * int(days or 0) + 3600 * first + 60 * second + third


def asked(words: Sequence[str]) -> str:
    """Runs one of SLURM's commands and returns what it prints.

    Raises:
        ValueError: it is missing, refuses or does not answer, in its own words.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=PATIENCE_SECONDS, check=False)
    except FileNotFoundError as error:
        raise ValueError(
            f"cluster=slurm needs SLURM's {words[0]}, which is not on this machine's PATH: call it from a login node"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{words[0]} has not answered within {PATIENCE_SECONDS} s: is SLURM's controller up?") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"nothing, and ended with status {done.returncode}"
        raise ValueError(f"SLURM's {words[0]} refuses: {said.removeprefix(f'{words[0]}: error: ')}")
    return done.stdout
