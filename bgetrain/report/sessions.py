"""When a run began and went on, and on what: noted in its provenance."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgetrain import output
from bgetrain.report.read import mapping, of_json

if TYPE_CHECKING:
    from bgetrain.types import World


def note(folder: Path, world: "World") -> None:
    """Adds a session to `provenance.json`: its beginning in seconds since 1970, how many ranks, on what.

    Args:
        folder: of the run.
        world: all ranks.

    Raises:
        OSError: the folder cannot be written.
    """
    import torch  # which who only reads pages has no need of

    path = folder / "provenance.json"
    known = of_json(path)
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    session = {"began_at": time.time(), "ranks": world.size, "device": device}
    output.write(path, json.dumps({**known, "sessions": [*of(known), session]}, indent=2))


def of(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sessions of a run, the first one first."""
    listed = provenance.get("sessions")
    return [mapping(each) for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def seconds(provenance: Mapping[str, Any], result: Mapping[str, Any]) -> float | None:
    """From the first beginning of a finished run to its end, with the time between sessions; None: not known."""
    begun, ended = [each.get("began_at") for each in of(provenance)[:1]], result.get("finished_at")
    if begun and isinstance(begun[0], int | float) and isinstance(ended, int | float):
        return max(0.0, ended - begun[0])
    told = result.get("seconds")
    return float(told) if isinstance(told, int | float) else None
