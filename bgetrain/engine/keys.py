"""Which top-level keys of deepspeed's config may be set."""

import difflib
from collections.abc import Iterable

# deepspeed's top-level keys that leave the update what it is (its runtime/config.py, 0.19.8); sizes, precision, optimizer
# and the like follow from keys of ours
PASSED_ON = (
    "activation_checkpointing", "aio", "comms_logger", "communication_data_type", "compile", "csv_monitor", "data_types",
    "disable_allgather", "disable_python_gc", "dump_state", "flops_profiler", "gradient_predivide_factor", "log_level",
    "memory_breakdown", "prescale_gradients", "steps_per_print", "tensorboard", "timers", "wandb", "wall_clock_breakdown",
)  # fmt: skip


def check_keys(keys: Iterable[str]) -> None:
    """Refuses top-level keys of deepspeed's config that are not passed on.

    Raises:
        ValueError: the first such key.
    """
    for name in keys:
        if name not in PASSED_ON:
            close = difflib.get_close_matches(name, [*PASSED_ON, "gradient_clipping", "zero_optimization"], n=1)
            hint = f"did you mean {close[0]}?" if close else f"valid: {', '.join(PASSED_ON)}"
            raise ValueError(f"engine.{name} is not a key of DeepSpeed that can be set here; {hint}")
