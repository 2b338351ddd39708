"""What is asked of SLURM's controller: to take a job, and how jobs stand."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


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


def submit(script: Path, *, after: Sequence[str] = (), after_any: Sequence[str] = (), array: int | None = None) -> str:
    """Submits a script and returns the job's id, which it also notes in job.json beside the script.

    Args:
        script: job.sbatch.
        after: jobs that must have ended well (afterok); where one fails this one is cancelled.
        after_any: jobs that must have ended.
        array: number of tasks of a job array, 0 to array - 1.

    Raises:
        ValueError: sbatch is missing or refuses, with its own words.
    """
    raise NotImplementedError


def submitted(output_dir: str) -> str | None:
    """The id of the job that was last submitted for a folder; None where there is none."""
    raise NotImplementedError


def jobs(ids: Sequence[str]) -> dict[str, Job]:
    """How jobs stand, by id, in one call; those that the controller has forgotten are UNKNOWN.

    Raises:
        ValueError: the controller cannot be asked, with its own words.
    """
    raise NotImplementedError
