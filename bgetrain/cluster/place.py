"""What a launcher is asked to start, and where each rank finds itself."""

import sys
from collections.abc import Callable
from typing import NamedTuple

from bgetrain.cluster.wire import Meeting


class Command(NamedTuple):
    """A run as it was asked for.

    Attributes:
        arguments: overrides that start one more rank of it, or the whole of it elsewhere.
        name: of the stage.
        output_dir: as the config has it.
        num_processes: ranks to start on this machine; None: one per visible GPU, or one on a CPU.
        dry_run: say what would be started, and start nothing.
    """

    arguments: list[str]
    name: str
    output_dir: str
    num_processes: int | None
    dry_run: bool

    @property
    def line(self) -> list[str]:
        """The command as a process of this environment."""
        return [sys.executable, "-m", "bgetrain", *self.arguments]


class Place(NamedTuple):
    """This process among all, and where they meet.

    Attributes:
        rank: 0 <= rank < size.
        size: ranks in all.
        local_rank: this process among those of its machine.
        local_size: ranks on this machine.
        timeout_minutes: how long a collective may wait.
        heartbeat_seconds: how long a rank may be silent.
        threads: for computing; None: this process's cores, divided by `local_size`.
        has_own_gpus: this process sees no other's GPUs, and takes the first.
        meet: finds the other ranks within some seconds; None: they are at MASTER_ADDR:MASTER_PORT.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    timeout_minutes: float
    heartbeat_seconds: float
    threads: int | None = None
    has_own_gpus: bool = False
    meet: Callable[[float], Meeting] | None = None
