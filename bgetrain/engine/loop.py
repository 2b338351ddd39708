"""The only training loop."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bgetrain.distributed import max_of_each
from bgetrain.engine.ahead import ahead
from bgetrain.engine.best import Best, Scoring
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.guard import Guard
from bgetrain.engine.interrupts import asked_to_stop
from bgetrain.engine.saver import Saver
from bgetrain.engine.window import Counts, Window
from bgetrain.types import Interrupted, LossOutput, World


def fit(
    engine: Engine,
    batch_at: Callable[[int], Any],
    update: Callable[[int, Any], tuple[LossOutput, Counts]],
    *,
    first_step: int,
    total_steps: int,
    schedule: Callable[[int, int], float],
    log: Callable[[int, dict[str, float]], None],
    log_every: int,
    save_every: int,
    num_workers: int,
    world: World,
    saver: Saver,
    guard: Guard,
    scoring: Scoring | None,
    progress: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Trains from `first_step` to `total_steps`.

    An interruption leaves no trace: a run that goes on logs the lines, and ends with the weights, of one that never stopped.

    Args:
        engine: holds the module and its optimizer.
        batch_at: this rank's batch of a step, with `epoch`; called ahead of time.
        update: (step, batch) -> loss and counts; leaves the gradient in the engine.
        first_step: counted from 1; above 1 after a resume.
        total_steps: the last step.
        schedule: (step, total_steps) -> factor of the peak learning rate.
        log: called on rank 0 after the first step, every `log_every` steps, with each score and at the end.
        log_every: steps.
        save_every: steps between checkpoints.
        num_workers: processes that make batches ahead of time; 0: a thread does.
        world: all ranks.
        saver: of this run.
        guard: of this run.
        scoring: of held-out data; None: there is none.
        progress: of each rank, as the checkpoint of the step before `first_step` has it; none at the beginning.

    Returns:
        The last logged metrics; `steps` done, and `best_step` where held-out data were scored.

    Raises:
        FloatingPointError: a loss or gradient that is not finite, on all ranks alike; nothing was updated by it.
        Interrupted: asked to stop; the step in hand is done and saved.
        ValueError: asked to stop, and nothing could be saved.
    """
    before = dict(progress[0]) if progress else {}
    window = Window(world, total_steps, [each["window"] for each in progress])
    best = Best(scoring, before.get("best", {}))
    logged: dict[str, float] = before.get("logged", {})

    def conclude(step: int, rate: float, epoch: float) -> bool:
        """Logs the figures of the window, and those of held-out data where they are due; whether these are the best so far."""
        nonlocal logged
        logged = {**window.close(step), "lr": rate, "epoch": epoch, **skipped(engine), **guard.figures(), **saver.figures()}
        guard.watch(step, logged.get("loss", math.nan))
        better = False
        if scoring is not None and best.due(step, step == total_steps):
            scores = scoring.score()
            better = best.add(step, scores)
            logged |= scores
            window.began = time.perf_counter()  # its seconds are not the next steps'
        log(step, logged)
        return better

    def save(step: int, better: bool, owed: Mapping[str, float] | None) -> None:
        held = {"window": window.state(), "best": best.state(), "guard": guard.state(), "logged": logged, "owed": owed}
        saver.save(engine.state, step, held, best=better)

    with asked_to_stop() as asked, ahead(batch_at, range(first_step, total_steps + 1), num_workers) as batches:
        step = first_step - 1
        if before.get("owed"):  # the run was stopped before it scored
            save(step, conclude(step, **before["owed"]), None)
        while step < total_steps and not best.exhausted():
            step, batch = step + 1, next(batches)
            engine.set_rate(schedule(step, total_steps))
            rate = engine.rate()
            output, counts = update(step, batch)
            # one exchange for all three, before the update: a rank that left alone would let the others hang
            flags = [asked.is_set(), not math.isfinite(float(output.loss)), saver.writing()]
            stop, broken, writing = max_of_each([int(flag) for flag in flags], world)
            if not writing:
                saver.settle()
            try:
                if broken:
                    guard.leave_out("loss", output, batch, counts.queries, step)
                norm = engine.step()
                if not broken and not math.isfinite(norm):
                    broken = True
                    guard.leave_out("gradient", output, batch, counts.queries, step)
            except FloatingPointError:
                saver.wait()
                raise
            if not broken:
                guard.passed()
                window.add(output, counts, norm)
            last = step == total_steps
            scored, better, owed = best.due(step, last), False, None
            if scored and stop and not last:  # who asks to stop may not have the patience for a score
                owed = {"rate": rate, "epoch": batch.epoch}
            elif step % log_every == 0 or step == 1 or last or scored:
                better = conclude(step, rate, batch.epoch)
            if step % save_every == 0 or stop or last or better or best.exhausted():
                save(step, better, owed)
            if stop and not last:
                saver.wait()
                raise Interrupted(f"interrupted, step {step} of {total_steps} {saver.told(step)}")
        saver.wait()
    ended = {"steps": float(step), **({"best_step": float(best.step)} if scoring else {})}
    return {**logged, **ended, **({"failed_saves": float(saver.failures)} if saver.failures else {})}


def skipped(engine: Engine) -> dict[str, float]:
    """fp16's figure of updates left out; none in another precision."""
    count = engine.skipped_steps()
    return {} if count is None else {"skipped_steps": float(count)}
