"""Learning rate as a function of the step."""

from collections.abc import Callable

Schedule = Callable[[int, int], float]  # (step from 1, total steps) -> factor of the peak learning rate


def linear(step: int, total_steps: int, *, warmup_ratio: float) -> float:
    """Factor of the peak learning rate: a linear rise over the warm-up, then a linear fall to 0.

    The same as transformers' `get_linear_schedule_with_warmup` at its step - 1, but that the first step is not wasted on 0.

    Args:
        step: counted from 1.
        total_steps: of the run.
        warmup_ratio: share of them that warm up.

    Returns:
        0 < factor <= 1 for 1 <= step <= total_steps.
    """
    warmup = round(warmup_ratio * total_steps)
    if step <= warmup:
        return step / warmup
    return (total_steps - step + 1) / (total_steps - warmup + 1)
