"""cluster=slurm: joins the ranks that srun has started, starts them inside an allocation, else submits a job."""

import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bgetrain.cluster import local, queue, sbatch, signals, srun
from bgetrain.cluster.place import Command, Place

if TYPE_CHECKING:
    from bgetrain.types import NonNegativeInt, PositiveFloat, PositiveInt

DEAF = tuple(128 + number for number in signals.SIGNALS)  # statuses of ranks that were not yet listening


def launch(
    run: Callable[[Place], int],
    command: Command,
    *,
    nodes: "PositiveInt",
    gpus_per_node: "NonNegativeInt",
    gpu_type: str | None,
    gpu_request: Literal["gpus-per-node", "gres", "none"],
    tasks_per_node: "PositiveInt | None",
    cpus_per_task: "PositiveInt | None",
    memory: str | None,
    exclusive: bool,
    time: str | int | None,
    partition: str | None,
    account: str | None,
    qos: str | None,
    reservation: str | None,
    constraint: str | None,
    job_name: str | None,
    array_parallel: "PositiveInt | None",
    modules: list[str],
    environment: Mapping[str, Any],
    setup: list[str],
    sbatch_lines: list[str],
    srun_flags: list[str],
    container: str | None,
    container_with: Literal["pyxis", "apptainer"],
    container_mounts: list[str],
    python: str | None,
    save_before_seconds: "PositiveInt",
    max_restarts: "NonNegativeInt",
    timeout_minutes: "PositiveFloat",
    heartbeat_seconds: "PositiveFloat",
    port: "PositiveInt | None",
) -> int:
    """Calls `run` where this process is a rank, else has SLURM start the ranks.

    conf/cluster/slurm.yaml says what each key is.

    Args:
        run: what one rank does; returns its exit status.
        command: what is run.

    Returns:
        A rank's exit status; inside an allocation that of the whole, as `local.launch` has it; 0 where a job was submitted.

    Raises:
        ValueError: SLURM is missing or refuses, in its own words.
    """
    request = {name: value for name, value in locals().items() if name not in ("run", "command")}
    if command.dry_run and srun.was_started():
        local.say(shlex.join(["bgetrain", *command.arguments]))
        return 0
    local.prepare()
    place = local.joined(timeout_minutes, heartbeat_seconds, port)
    if place is None and srun.in_step():
        place = local.alone(timeout_minutes, heartbeat_seconds)
    if place:
        return run(place)
    return start_here(command, request) if srun.in_allocation() else submit(command, request)


def runs_here(cluster: Mapping[str, Any]) -> bool:
    """Whether a command with this node of the config starts or joins ranks, and does not merely submit a job."""
    return not is_chosen(cluster) or srun.in_allocation()


def is_chosen(cluster: Mapping[str, Any]) -> bool:
    """Whether this node of the config is that of cluster=slurm."""
    return cluster.get("_target_") == f"{__name__}.{launch.__name__}"


def submit(command: Command, request: Mapping[str, Any]) -> int:
    """Writes job.sbatch and submits it, unless a job of this folder is still in the queue; returns the exit status.

    Raises:
        ValueError: that job has other overrides, or is about to end; or SLURM refuses.
    """
    if command.dry_run:
        script = sbatch.write(command, request)
        local.say(f"wrote {script}; to submit it: sbatch {shlex.quote(str(script))}")
        return 0
    job = waiting(command.output_dir)
    if job:
        queue.check(job, queue.arguments(command.output_dir), command.arguments)
        why = f" ({job.reason})" if job.reason else ""
        local.say(f"job {job.id} of this folder is {job.state}{why}, and no second one is submitted")
        show(job.id, Path(command.output_dir).absolute())
        return 0
    script = sbatch.write(command, request)
    id = queue.submit(script, command.arguments)
    local.say(f"submitted {script} as job {id}")
    show(id, script.parent)
    return 0


def waiting(output_dir: str) -> queue.Job | None:
    """The job that is still to make the run of a folder; None: there is none.

    Raises:
        ValueError: it is about to end, or SLURM cannot be asked.
    """
    earlier = queue.submitted(output_dir)
    return queue.standing(queue.jobs([earlier])[earlier]) if earlier else None


def show(id: str, folder: Path) -> None:
    """Says where to look and what to type for a job."""
    log = shlex.quote(str(folder / f"slurm-{id}.out"))
    local.say(f"  follow   tail -F {log}\n  look     squeue --job={id}")
    local.say(f"  stop     scancel --batch --signal=INT {id} (saves; the same command goes on)\n  cancel   scancel {id}")


def start_here(command: Command, request: Mapping[str, Any]) -> int:
    """Starts the ranks by srun in the allocation that this process is in; returns the exit status of the whole."""
    request = sbatch.sized(command, request)
    parts = sbatch.srun_parts(request, [str(Path(command.output_dir).absolute())])
    words = [*(word for part in parts for word in part), *command.arguments]
    if command.dry_run:
        local.say(shlex.join(words))
        return 0
    try:
        ranks = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)  # a Ctrl-C reaches it from here alone
    except FileNotFoundError as error:
        raise ValueError("cluster=slurm needs SLURM's srun, which is not on this machine's PATH") from error

    def pass_on(number: int, count: int) -> None:
        if count == 1:
            ranks.send_signal(signal.SIGUSR1)  # which srun hands to every rank; by others it ends them
        else:
            ranks.terminate()

    with signals.counted(pass_on, first_only=False) as interrupts:
        status = ranks.wait()
    status = 128 - status if status < 0 else status
    if interrupts() and status in DEAF:
        return local.INTERRUPTED
    return status if status in (0, local.USER_ERROR, local.INTERRUPTED) else 1
