"""Ranks that srun has started: SLURM's variables as those that torchrun sets."""

import os
import re

FIRST_PORT, PORTS = 20_000, 12_000  # below the ephemeral ports, which start at 32,768 on Linux
INTERACTIVE = "4294967290"  # the step in which salloc runs a shell on the first node; its one task is no rank


def adopt() -> None:
    """Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT where srun has started several tasks."""
    if "RANK" in os.environ or not in_step() or int(os.environ["SLURM_STEP_NUM_TASKS"]) == 1:
        return
    variables = os.environ
    found = {
        "RANK": variables["SLURM_PROCID"],
        "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_of_node(variables["SLURM_STEP_TASKS_PER_NODE"], int(variables["SLURM_NODEID"]))),
        "MASTER_ADDR": first_host(variables["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(FIRST_PORT + int(variables["SLURM_JOB_ID"]) % PORTS),
    }
    for name, value in found.items():
        os.environ.setdefault(name, value)


def in_step() -> bool:
    """Whether srun has started this process."""
    return "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_STEP_ID", INTERACTIVE) != INTERACTIVE


def in_allocation() -> bool:
    """Whether this process has nodes, by sbatch or salloc."""
    return "SLURM_JOB_ID" in os.environ


def first_host(nodes: str) -> str:
    """`node[03-05,9],b1` -> node03."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def tasks_of_node(counts: str, node: int) -> int:
    """`2(x3),1` -> 2 for nodes 0 to 2, 1 for node 3."""
    each = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]
    return each[node]
