"""The only training loop."""

import math
from collections.abc import Callable
from typing import Any

from bgetrain.distributed import max_of_each
from bgetrain.engine.ahead import ahead
from bgetrain.engine.course import Course
from bgetrain.engine.interrupts import asked_to_stop
from bgetrain.engine.window import Counts
from bgetrain.progress import watched
from bgetrain.types import Interrupted, LossOutput, World


def fit(
    batch_at: Callable[[int], Any],
    update: Callable[[int, Any], tuple[LossOutput, Counts]],
    *,
    first_step: int,
    schedule: Callable[[int, int], float],
    num_workers: int,
    course: Course,
    world: World,
) -> dict[str, float]:
    """Trains from `first_step` to the last step of its course.

    An interruption leaves no trace: a run that goes on logs the lines, and ends with the weights, of one that never stopped.

    Args:
        batch_at: this rank's batch of a step, with `epoch`; called ahead of time.
        update: (step, batch) -> loss and counts; leaves the gradient in the engine.
        first_step: counted from 1; above 1 after a resume.
        schedule: (step, total_steps) -> factor of the peak learning rate.
        num_workers: processes that make batches ahead of time; 0: a thread does.
        course: has the engine and the last step; logs, scores and saves.
        world: all ranks.

    Returns:
        The last logged metrics; `steps` done, and `best_step` where held-out data were scored.

    Raises:
        FloatingPointError: a loss or gradient that is not finite, on all ranks alike; nothing was updated by it.
        Interrupted: asked to stop; the step in hand is done and saved.
        ValueError: asked to stop, and nothing could be saved.
    """
    engine, total_steps, step = course.engine, course.total_steps, first_step - 1
    with watched(), asked_to_stop() as asked, ahead(batch_at, range(first_step, total_steps + 1), num_workers) as batches:
        course.pay(step)
        while step < total_steps and not course.best.exhausted():
            step, batch = step + 1, next(batches)
            engine.set_rate(schedule(step, total_steps))
            rate = engine.rate()
            output, counts = update(step, batch)
            # one exchange for all three, before the update: a rank that left alone would let the others hang
            flags = [asked.is_set(), not math.isfinite(float(output.loss)), course.saver.writing()]
            stop, broken, writing = max_of_each([int(flag) for flag in flags], world)
            if not writing:
                course.saver.settle()
            course.update(step, batch, output, counts, bool(broken))
            course.conclude(step, rate, batch.epoch, bool(stop))
            if stop and step < total_steps:
                course.saver.wait()
                raise Interrupted(f"interrupted, step {step} of {total_steps} {course.saver.told(step)}")
        course.saver.wait()
    return course.outcome(step)
