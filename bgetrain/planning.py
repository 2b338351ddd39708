"""stage=plan on the command line: what is asked about the plan, what is planned, and both checked before torch is imported."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import config, recipe, selection
from bgetrain.target import is_int, named


class Step(NamedTuple):
    """One step that is planned.

    Attributes:
        name: of the stage, or in the recipe.
        cfg: composed; keys that it lacks are "???".
    """

    name: str
    cfg: dict[str, Any]


def run(arguments: Sequence[str]) -> int:
    """Answers `stage=plan plan.stage=NAME ...` or `stage=plan recipe=NAME ...`; returns the exit status.

    Nothing is claimed, started or allocated.

    Args:
        arguments: keys of the plan, and the overrides of what is planned.

    Raises:
        ValueError: a fault in either.
    """
    own = [each for each in arguments if each == "stage=plan" or key_of(each).partition(".")[0] == "plan"]
    others = [each for each in arguments if each not in own]
    cfg = config.plain(own)
    asked = cfg["plan"]
    check(asked)
    steps = steps_of(asked, others)
    names = [step.name for step in steps]
    for name, rows in asked["rows_of"].items():
        if name not in names:
            raise ValueError(f"plan.rows_of: there is no step {name!r}{selection.nearest(name, names)}")
        if not is_int(rows) or rows < 1:
            raise ValueError(f"plan.rows_of.{name} must be a whole number above 0, got {rows!r}")
    named(cfg["stage"]["_target_"])(asked, steps)
    return 0


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def check(asked: dict[str, Any]) -> None:
    """Holds the plan's keys against the devices and stages that there are.

    Raises:
        ValueError: one that is not there.
    """
    devices = asked["devices"]
    if asked["gpu"] not in devices:
        raise ValueError(f"plan.gpu={asked['gpu']}: no such device{selection.nearest(asked['gpu'], list(devices))}")
    for name, device in devices.items():
        lacking = [each for each in ("memory_gb", "bf16", "fp16", "fp32", "bandwidth", "link") if each not in device]
        if lacking:
            raise ValueError(f"plan.devices.{name} lacks {lacking[0]}: see plan.devices in `bgetrain stage=plan --help`")
        for key, value in device.items():
            if key != "kind" and value is not None and (isinstance(value, bool | str) or value <= 0):
                raise ValueError(f"plan.devices.{name}.{key} must be a number above 0 or null, got {value!r}")
    if asked["json"] not in (None, "-"):
        path = Path(asked["json"]).expanduser()
        if not asked["json"].strip() or path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"plan.json={asked['json']} cannot be written: give a file in a folder that exists, or - for stdout")
    if asked["mfu"] == 0 or asked["memory_share"] == 0:
        raise ValueError("plan.mfu and plan.memory_share must be above 0")


def steps_of(asked: dict[str, Any], others: Sequence[str]) -> list[Step]:
    """The steps of a recipe, or the one stage, composed.

    Raises:
        ValueError: neither or both are given, or one that does not compose.
    """
    if any(each.startswith("recipe=") for each in others):
        if asked["stage"] is not None:
            raise ValueError(f"plan.stage={asked['stage']} beside recipe=NAME: give one of the two")
        own, extras = recipe.split(others)
        given = {key_of(each) for each in extras}
        if not given & {"cluster", "num_processes"}:
            extras = [*extras, "cluster=slurm"]  # whose keys are the sizes of each step's job; cluster=local has none
        planned = recipe.plan(own["recipe"], recipe.folder_of(own), extras)
        return [Step(each.name, plain(each.overrides)) for each in planned]
    known = [each for each in selection.options("stage") if each != "plan"]
    if asked["stage"] is None:
        raise ValueError(f"plan.stage is missing: add plan.stage=NAME, one of {', '.join(known)}; or recipe=NAME")
    if asked["stage"] not in known:
        raise ValueError(f"plan.stage={asked['stage']}: no such stage{selection.nearest(asked['stage'], known)}")
    return [Step(asked["stage"], plain([f"stage={asked['stage']}", *others]))]


def plain(overrides: Sequence[str]) -> dict[str, Any]:
    """A config as mappings and lists; what no plan needs, such as files, may be missing."""
    found = config.plain(overrides, missing=True)
    if (found.get("model") or {}).get("path") == "???":
        raise ValueError("model.path is missing: add model.path=FOLDER_OR_NAME")
    return found
