"""The state of fp16's loss scaler inside deepspeed's optimizers (0.19.8), by the names that they give it."""

from collections.abc import Mapping
from typing import Any

# DynamicLossScaler (ZeRO 1 to 3) and LossScaleConfig (its FP16_Optimizer) in runtime/fp16/loss_scaler.py; static: the first
FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def held_by(optimizer: Any) -> Any:
    """The object of deepspeed's that holds the scale."""
    return optimizer.loss_scaler if hasattr(optimizer, "loss_scaler") else optimizer.loss_scale_config


def read(core: Any) -> dict[str, float] | None:
    """Scale, place in its window and updates skipped so far; None where the precision is not fp16."""
    if not core.fp16_enabled():
        return None
    held = held_by(core.optimizer)
    found = {name: float(getattr(held, name)) for name in FIELDS if getattr(held, name, None) is not None}
    return {**found, "skipped_steps": float(core.skipped_steps)}


def write(core: Any, state: Mapping[str, float] | None) -> None:
    """Takes over what `read` returned; a state of another precision leaves the scaler at its beginning."""
    if state is None or not core.fp16_enabled():
        return
    held = held_by(core.optimizer)
    for name in FIELDS:
        if name in state and hasattr(held, name):
            setattr(held, name, state[name] if name == "cur_scale" else int(state[name]))
    core.skipped_steps = int(state["skipped_steps"])
