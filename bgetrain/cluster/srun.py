"""Ranks that srun has started: SLURM's variables as those that torchrun sets, their meeting, their cores and GPUs."""

import os
import re

from bgetrain.cluster.desk import Keeper
from bgetrain.cluster.guest import Guest
from bgetrain.cluster.wire import Meeting

FIRST_PORT, PORTS = 20_000, 12_000  # below the ephemeral ports, which start at 32,768 on Linux
CANDIDATES = 8  # ports that are tried
# steps that srun does not start by a user's word: the shell of salloc on the first node (4294967290), a batch script, ...
FIRST_SPECIAL_STEP = 4_294_967_290
DESKS: list[Keeper | Guest] = []  # this rank's, where srun has started several


def adopt() -> None:
    """Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT where srun has started several tasks.

    A MASTER_ADDR or MASTER_PORT that is set holds; any other port is the first of several that may be tried.

    Raises:
        ValueError: MASTER_PORT is taken, or every port of those.
    """
    if "RANK" in os.environ or not in_step() or int(os.environ["SLURM_STEP_NUM_TASKS"]) == 1:
        return
    variables = os.environ
    rank, size = int(variables["SLURM_PROCID"]), int(variables["SLURM_STEP_NUM_TASKS"])
    place = job, step, restarts = [
        int(variables.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    ]
    host = variables.setdefault("MASTER_ADDR", first_host(variables["SLURM_STEP_NODELIST"]))
    name, tried = f"bgetrain {job}.{step}.{restarts}", ports(*place)
    fixed = variables.setdefault("MASTER_PORT", str(tried[0]))
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK="0" if has_own_gpus() else variables["SLURM_LOCALID"],  # by which DeepSpeed chooses a GPU
        LOCAL_WORLD_SIZE=str(tasks_of_node(variables["SLURM_STEP_TASKS_PER_NODE"], int(variables["SLURM_NODEID"]))),
    )
    DESKS.append(Guest(name, rank, host, tried) if rank else Keeper(name, size, host, tried))
    if int(fixed) != tried[0]:
        DESKS[0].move(int(fixed))


def is_rank() -> bool:
    """Whether this process is one of several that srun has started."""
    return bool(DESKS)


def local_rank() -> int:
    """This rank among those of its node."""
    return int(os.environ["SLURM_LOCALID"])


def meet(seconds: float) -> Meeting:
    """Waits for all ranks, and notes the port where they have met.

    Raises:
        AbandonedError: one of them has left, and has said why.
        ValueError: rank 0, or another, was not found.
    """
    found = DESKS[0].meet(seconds)
    os.environ["MASTER_PORT"] = str(found.port)
    return found


def close(status: int) -> None:
    """Leaves the other ranks with a word where this one, the first, ends with a failure."""
    for desk in DESKS:
        desk.close(status)


def ports(job: int, step: int, restarts: int) -> list[int]:
    """Where the ranks may meet; those of steps, of a job that was requeued and of neighbouring jobs differ."""
    first = job + 1_009 * step + 2_003 * restarts
    return [FIRST_PORT + (first + 4_001 * number) % PORTS for number in range(CANDIDATES)]


def in_step() -> bool:
    """Whether srun has started this process."""
    return "SLURM_STEP_NUM_TASKS" in os.environ and int(os.environ.get("SLURM_STEP_ID", "0")) < FIRST_SPECIAL_STEP


def was_started() -> bool:
    """Whether srun, torchrun or a launcher of ours has started this process."""
    return in_step() or "RANK" in os.environ


def in_allocation() -> bool:
    """Whether this process has nodes, by sbatch or salloc."""
    return "SLURM_JOB_ID" in os.environ


def first_host(nodes: str) -> str:
    """`node[03-05,9],b1` -> node03."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([0-9A-Z]+)[^\]]*\]", r"\1", first)


def tasks_of_node(counts: str, node: int) -> int:
    """`2(x3),1` -> 2 for nodes 0 to 2, 1 for node 3."""
    each = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]
    return each[node]


def threads(local_size: int) -> int | None:
    """Cores for this rank; None where SLURM has given none.

    Args:
        local_size: ranks on this machine, which share its cores unless SLURM has given each task its own.
    """
    if not in_allocation():
        return None
    usable = len(os.sched_getaffinity(0))
    of_job = int(os.environ.get("SLURM_CPUS_ON_NODE", usable))
    if not in_step():
        return max(1, min(usable, of_job) // local_size)
    tasks = tasks_of_node(os.environ["SLURM_STEP_TASKS_PER_NODE"], int(os.environ["SLURM_NODEID"]))
    # a task that may use fewer cores than its job has here is bound to some of its own
    of_task = int(os.environ.get("SLURM_CPUS_PER_TASK", usable if usable < of_job else of_job // tasks))
    return max(1, min(usable, of_task) // (1 if is_rank() else local_size))


def has_own_gpus() -> bool:
    """Whether this task sees GPUs of its own alone (--gpus-per-task, --gpu-bind), and not all of its job's on this node."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("ROCR_VISIBLE_DEVICES", ""))
    return in_step() and 0 < len(visible.split(",")) < int(os.environ.get("SLURM_GPUS_ON_NODE", "0")) and bool(visible)
