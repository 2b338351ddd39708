"""Learning rate as a function of the step."""

from collections.abc import Callable

Schedule = Callable[[int, int], float]  # (step from 1, total steps) -> factor of the peak learning rate


def linear(step: int, total_steps: int, *, warmup_ratio: float) -> float:
    """Factor of the peak learning rate: a linear rise over the warm-up, then a linear fall to 0.

    That of transformers' `get_linear_schedule_with_warmup`, but without its first step, whose rate is 0: the peak is
    reached at the last step of the warm-up, at step 1 where there is none, and the last step's rate is above 0.

    Args:
        step: counted from 1.
        total_steps: of the run.
        warmup_ratio: share of them that warm up.

    Returns:
        0 < factor <= 1 for 1 <= step <= total_steps.
    """
    warmup = max(1, round(warmup_ratio * total_steps))
    if step <= warmup:
        return step / warmup
    return (total_steps - step + 1) / (total_steps - warmup + 1)
