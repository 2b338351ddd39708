"""Writes checkpoints while training goes on: each rank its part in a thread, made whole by all ranks together."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain.distributed import from_first, gather_objects
from bgetrain.engine import checkpoint, commit
from bgetrain.engine.checkpoint import RANDOM, Part
from bgetrain.types import TrainState, World


class Pending(NamedTuple):
    """A checkpoint that is being written.

    Attributes:
        step: its own.
        best: it is the best so far.
        facts: for `state.json`, on rank 0.
        thread: of this rank's part.
        outcome: receives the part, or what the disk said, in words.
        began: seconds of the clock.
        stalled: seconds that training waited for it so far.
    """

    step: int
    best: bool
    facts: Mapping[str, Any]
    thread: threading.Thread
    outcome: list[Part | str]
    began: float
    stalled: float


class Saver:
    """Keeps the checkpoints of a run; every rank has one and calls it at the same steps.

    Args:
        folder: `output_dir/checkpoints`; it exists.
        world: all ranks.
        keep: checkpoints that stay, beside the best.
        overlap: training goes on while a checkpoint is written.
        facts: of the run, for `state.json`.
        warn: told, on the rank concerned, what could not be saved.
        first_step: of this run; the step before has a checkpoint if it is above 1.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        keep: int,
        overlap: bool,
        facts: Mapping[str, Any],
        warn: Callable[[str], None],
        first_step: int,
    ) -> None:
        self.folder, self.world, self.keep, self.overlap = folder, world, keep, overlap
        self.facts, self.warn = facts, warn
        self.saved, self.best = first_step - 1, checkpoint.named(folder, "best")
        self.failures, self.said = 0, ""
        self.pending: Pending | None = None
        self.pruning: threading.Thread | None = None  # of old checkpoints, which a slow disk may take long over
        self.new: dict[str, float] = {}
        self.total: dict[str, float] = {}

    def save(self, state: Callable[[int], TrainState], step: int, progress: Mapping[str, Any], *, best: bool) -> None:
        """Takes a snapshot and lets a thread write it; one that is being written is waited for first.

        Args:
            state: step -> this rank's share.
            step: done.
            progress: of the training loop on this rank, as JSON has it.
            best: it is the best so far.
        """
        self.wait()
        began = time.perf_counter()
        held = state(step)
        shared = {"step": step, "counters": held.counters, "scaler": held.scaler, **self.facts}
        facts = {**shared, "progress": gather_objects(progress, self.world)}
        random = {f"{RANDOM}{self.world.rank}/{name}": each for name, each in held.random.items()}
        outcome: list[Part | str] = []
        thread = threading.Thread(target=self.write, args=(step, held.tensors | random, outcome), name="checkpoint", daemon=True)
        thread.start()
        self.pending = Pending(step, best, facts, thread, outcome, began, time.perf_counter() - began)
        if not self.overlap:
            self.wait()

    def write(self, step: int, tensors: dict[str, Any], outcome: list[Part | str]) -> None:
        """What the thread does."""
        try:
            outcome.append(commit.write_part(self.folder, step, self.world.rank, self.world.size, tensors))
        except OSError as error:
            outcome.append(said(error))
        except BaseException as error:  # nobody but this thread would know
            outcome.append(f"{type(error).__name__}: {said(error)}")
            raise

    def writing(self) -> bool:
        """Whether this rank's part is not yet written."""
        return self.pending is not None and self.pending.thread.is_alive()

    def wait(self) -> None:
        """Returns when nothing is being written or removed; all ranks call it."""
        if self.pending is not None:
            began = time.perf_counter()
            self.pending.thread.join()
            self.pending = self.pending._replace(stalled=self.pending.stalled + time.perf_counter() - began)
            self.settle()
        if self.pruning is not None:
            self.pruning.join()
            self.pruning = None

    def settle(self) -> None:
        """Makes the checkpoint whole, which all ranks have written, or gives it up where one of them could not."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        began = time.perf_counter()
        pending.thread.join()
        outcomes = gather_objects(pending.outcome[0], self.world)
        parts = [each for each in outcomes if isinstance(each, Part)]
        faults = {rank: each for rank, each in enumerate(outcomes) if isinstance(each, str)}
        if not faults:
            fault = from_first(self.commit(pending, parts) if self.world.rank == 0 else None, self.world)
            faults = {0: fault} if fault is not None else {}
        if faults:
            return self.give_up(pending.step, *next(iter(faults.items())))
        self.saved = pending.step
        self.best = pending.step if pending.best else self.best
        ended = time.perf_counter()
        figures = {"seconds": ended - pending.began, "stall_seconds": pending.stalled + ended - began}
        self.count(figures | {"gb": sum(part.size for part in parts) / 1e9, "count": 1.0})

    def give_up(self, step: int, rank: int, fault: str) -> None:
        """Goes on without a checkpoint that `rank` could not write, which says so."""
        self.failures, self.said = self.failures + 1, fault
        if self.world.rank == 0:
            commit.give_up(self.folder, step)
        if self.world.rank == rank:
            there = self.saved and checkpoint.place_of(self.folder, self.saved).is_dir()
            before = f"that of step {self.saved:,} stays" if there else "there is none before it"
            self.warn(f"the checkpoint of step {step:,} could not be saved in {self.folder} ({fault}); {before}")

    def commit(self, pending: Pending, parts: list[Part]) -> str | None:
        try:
            commit.commit(self.folder, pending.facts, parts, best=pending.best)
        except OSError as error:
            return said(error)
        keep = (self.folder, pending.step, self.keep)
        self.pruning = threading.Thread(target=commit.prune, args=keep, name="pruning", daemon=True)
        self.pruning.start()
        return None

    def mark_best(self, step: int) -> None:
        """Keeps the checkpoint of `step`, which has just been saved, as the best; all ranks call it."""
        self.wait()
        if self.saved != step:
            return  # what is said of it has been said
        fault = None
        if self.world.rank == 0:
            try:
                checkpoint.point(self.folder, "best", step)
            except OSError as error:
                fault = said(error)
        fault = from_first(fault, self.world)
        if fault is None:
            self.best = step
        elif self.world.rank == 0:
            self.warn(f"{self.folder / 'best'} could not be moved to step {step:,} ({fault})")

    def count(self, figures: dict[str, float]) -> None:
        for held in (self.new, self.total):
            for name, value in figures.items():
                held[f"save_{name}"] = held.get(f"save_{name}", 0.0) + value

    def figures(self) -> dict[str, float]:
        """Of the checkpoints finished since the last call, together: seconds in all, those that training waited, size, count."""
        new, self.new = self.new, {}
        return new

    def told(self, step: int) -> str:
        """Where the run stands, for who has stopped it.

        Raises:
            ValueError: nothing could be saved.
        """
        if not self.saved:
            raise ValueError(f"stopped at step {step}, nothing could be saved in {self.folder} ({self.said}): make room there")
        if self.saved == step:
            return f"is saved in {self.folder}"
        return f"could not be saved ({self.said}); that of step {self.saved} stays in {self.folder}"


def said(error: BaseException) -> str:
    """What the disk said, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
