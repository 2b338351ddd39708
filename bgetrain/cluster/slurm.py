"""cluster=slurm: joins the ranks that srun has started, starts them inside an allocation, else submits a job."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from bgetrain.cluster.place import Command, Place

if TYPE_CHECKING:
    from bgetrain.types import NonNegativeInt, PositiveFloat, PositiveInt


def launch(
    run: Callable[[Place], int],
    command: Command,
    *,
    nodes: "PositiveInt",
    gpus_per_node: "NonNegativeInt",
    tasks_per_node: "PositiveInt | None",
    cpus_per_task: "PositiveInt | None",
    partition: "str | None",
    account: "str | None",
    qos: "str | None",
    time: "str | int | None",
    constraint: "str | None",
    memory: "str | None",
    modules: "list[str]",
    environment: "Mapping[str, Any]",
    setup: "list[str]",
    sbatch_lines: "list[str]",
    srun_flags: "list[str]",
    container: "str | None",
    container_with: "Literal['pyxis', 'apptainer']",
    container_mounts: "list[str]",
    python: "str | None",
    save_before_seconds: "PositiveInt",
    max_restarts: "NonNegativeInt",
    timeout_minutes: "PositiveFloat",
    heartbeat_seconds: "PositiveFloat",
    port: "PositiveInt | None",
) -> int:
    """Calls `run` where this process is a rank, else has SLURM start the ranks."""
    raise NotImplementedError
