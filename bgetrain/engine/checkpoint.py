"""Checkpoints: `checkpoints/step_N/`, written beside and renamed; `checkpoints/latest` names the newest and moves last."""

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from bgetrain.types import TrainState


def save(folder: Path, state: TrainState, *, keep: int) -> Path:
    """Writes a state; rank 0 alone calls it.

    Args:
        folder: `output_dir/checkpoints`.
        state: whole, on the host.
        keep: checkpoints to leave, this one and the newest before it.

    Returns:
        Where it lies.
    """
    final, beside = folder / f"step_{state.step}", folder / f".step_{state.step}.part"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(state.parameters, beside / "parameters.safetensors")
    moments = {f"{name}/{key}": value for name, held in state.moments.items() for key, value in held.items()}
    save_file(moments, beside / "optimizer.safetensors")
    facts = {"step": state.step, "counters": state.counters, "scaler": state.scaler}
    (beside / "state.json").write_text(json.dumps(facts), "utf8")
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    pointer = folder / f".latest.{os.getpid()}"
    pointer.write_text(final.name, "utf8")
    pointer.replace(folder / "latest")
    kept = [step for step in steps(folder) if step <= state.step][-keep:]  # later ones are of a run that was given up
    for old in set(steps(folder)) - set(kept):
        shutil.rmtree(folder / f"step_{old}")
    for part in folder.glob(".step_*.part"):  # of a run that was killed while it wrote
        shutil.rmtree(part)
    return final


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return sorted(int(path.name[5:]) for path in folder.glob("step_*") if path.name[5:].isdigit())


def latest_step(folder: Path) -> int:
    """The step that `latest` names, 0 where there is none."""
    pointer = folder / "latest"
    if not pointer.is_file():
        return 0
    name = pointer.read_text("utf8").strip()
    if not (folder / name / "state.json").is_file():
        raise ValueError(f"{pointer}: names {name!r}, which is not there; delete the pointer or use resume=never")
    return int(name[5:])


def load_latest(folder: Path) -> TrainState | None:
    """Reads the newest checkpoint, None where there is none; every rank reads for itself.

    Raises:
        ValueError: the pointer names a checkpoint that is not there.
    """
    step = latest_step(folder)
    if step == 0:
        return None
    place = folder / f"step_{step}"
    facts = json.loads((place / "state.json").read_text("utf8"))
    moments: dict[str, dict] = {}
    for name, value in load_file(place / "optimizer.safetensors").items():
        parameter, _, key = name.rpartition("/")
        moments.setdefault(parameter, {})[key] = value
    parameters = load_file(place / "parameters.safetensors")
    moments = {name: moments.get(name, {}) for name in parameters}
    return TrainState(facts["step"], parameters, moments, facts["counters"], facts.get("scaler"))
