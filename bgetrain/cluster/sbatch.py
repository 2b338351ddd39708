"""job.sbatch: a script that starts one run under SLURM, readable, and good for running by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bgetrain.cluster.place import Command


def write(command: Command, request: Mapping[str, Any]) -> Path:
    """Writes OUT/job.sbatch and returns its absolute path.

    Args:
        command: what it starts.
        request: the keys of conf/cluster/slurm.yaml.
    """
    raise NotImplementedError
