"""What a run shows for its steps: lines of the log, scores of held-out data, checkpoints."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bgetrain.engine.best import Best, Scoring
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.guard import Guard
from bgetrain.engine.saver import Saver
from bgetrain.engine.window import Counts, Window
from bgetrain.types import LossOutput, World


class Course:
    """Where a run stands between two steps, through interruptions; every rank has one and calls it at the same steps.

    Args:
        engine: trains.
        saver: of the run.
        guard: of the run.
        scoring: of held-out data; None: there is none.
        log: called on rank 0 after the first step, every `log_every` steps, with each score and at the end.
        log_every: steps.
        save_every: steps.
        total_steps: the last step.
        world: all ranks.
        progress: of each rank, as the checkpoint that the run goes on from has it; none at the beginning.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        saver: Saver,
        guard: Guard,
        scoring: Scoring | None,
        log: Callable[[int, dict[str, float]], None],
        log_every: int,
        save_every: int,
        total_steps: int,
        world: World,
        progress: Sequence[Mapping[str, Any]],
    ) -> None:
        before = dict(progress[0]) if progress else {}
        self.engine, self.saver, self.guard, self.scoring = engine, saver, guard, scoring
        self.log, self.log_every, self.save_every, self.total_steps = log, log_every, save_every, total_steps
        self.window = Window(world, total_steps, [each["window"] for each in progress])
        self.best = Best(scoring, before.get("best", {}))
        self.logged: dict[str, float] = before.get("logged", {})
        self.owed: dict[str, float] | None = before.get("owed")  # a line that a run left out because it was to stop

    def update(self, step: int, batch: Any, output: LossOutput, counts: Counts, broken: bool) -> None:
        """Applies the gradient that the engine holds, or leaves it out.

        Args:
            step: the one in hand.
            batch: of this rank.
            output: of this rank.
            counts: of this rank.
            broken: the loss of some rank is not finite.

        Raises:
            FloatingPointError: loss or gradient are not finite, and may not be left out; nothing was updated.
        """
        try:
            if broken:
                self.guard.leave_out("loss", output, batch, counts.queries, step)
            norm = self.engine.step()  # which updates nothing where the gradient is not finite
            if not broken and not math.isfinite(norm):
                broken = True
                self.guard.leave_out("gradient", output, batch, counts.queries, step)
        except FloatingPointError:
            self.saver.wait()
            raise
        if not broken:
            self.guard.passed()
            self.window.add(output, counts, norm)

    def conclude(self, step: int, rate: float, epoch: float, stop: bool) -> None:
        """Logs, scores and saves what is due after a step.

        Args:
            step: done.
            rate: its learning rate.
            epoch: passes over the data when it began.
            stop: the run is asked to stop; who asks may not have the patience for a score, which is then owed.
        """
        last = step == self.total_steps
        kept = step % self.save_every == 0 or stop or last
        if not self.best.due(step, last):
            if step % self.log_every == 0 or step == 1 or last:
                self.write(step, rate, epoch)
            if kept:
                self.save(step)
            return
        if kept:  # before the score, which may take long
            self.owed = {"rate": rate, "epoch": epoch}
            self.save(step)
            if not stop or last:
                self.pay(step)
            return
        better = self.write(step, rate, epoch)
        if better or self.best.exhausted():
            self.save(step, better)

    def pay(self, step: int) -> None:
        """Writes the line that is owed after `step`, whose checkpoint is there; going on from it, it is owed again."""
        if self.owed is not None:
            better = self.write(step, **self.owed)
            self.owed = None
            if better:
                self.saver.mark_best(step)

    def write(self, step: int, rate: float, epoch: float) -> bool:
        """Logs the figures of the window, with those of held-out data where they are due; whether these are the best so far."""
        told = {**skipped(self.engine), **self.guard.figures(), **self.saver.figures()}
        self.logged = {**self.window.close(step), "lr": rate, "epoch": epoch, **told}
        if "loss" in self.logged:
            self.guard.watch(step, self.logged["loss"])
        better = False
        if self.scoring is not None and self.best.due(step, step == self.total_steps):
            self.saver.wait()  # a score may take long, and may end the run
            figures = self.scoring.score()
            better = self.best.add(step, figures)
            self.logged |= figures
            self.window.began = time.perf_counter()  # its seconds are not the next steps'
        self.log(step, self.logged)
        return better

    def save(self, step: int, better: bool = False) -> None:
        """Begins a checkpoint."""
        own = {"window": self.window.state(), "best": self.best.state(), "guard": self.guard.state()}
        self.saver.save(self.engine.state, step, {**own, "logged": self.logged, "owed": self.owed}, best=better)

    def outcome(self, step: int) -> dict[str, float]:
        """The last figures logged, the steps done, the best of them that was kept, and what saving took; nothing is pending."""
        kept, best = self.saver.best, self.best.step
        if self.scoring and best and kept != best and self.saver.world.rank == 0:
            instead = f"that of step {kept:,} is the best that there is" if kept else "there is none to take for the best"
            self.saver.warn(f"the checkpoint of step {best:,}, the best by {self.scoring.metric}, could not be saved; {instead}")
        figures = {**self.logged, "steps": float(step), **self.saver.total}
        figures |= {"best_step": float(kept)} if self.scoring else {}
        return figures | ({"failed_saves": float(self.saver.failures)} if self.saver.failures else {})


def skipped(engine: Engine) -> dict[str, float]:
    """fp16's figure of updates left out; none in another precision."""
    count = engine.skipped_steps()
    return {} if count is None else {"skipped_steps": float(count)}
