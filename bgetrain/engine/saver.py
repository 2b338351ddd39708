"""Writes checkpoints while training goes on: each rank its part in a thread, made whole by all ranks together."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bgetrain.distributed import from_first, gather_arrays, gather_texts
from bgetrain.engine import commit
from bgetrain.engine.checkpoint import RANDOM, Part
from bgetrain.types import TrainState, World


class Pending(NamedTuple):
    """A checkpoint that is being written.

    Attributes:
        step: its own.
        best: it is the best so far.
        facts: for `state.json`, on rank 0.
        thread: of this rank's part.
        outcome: receives the part, or what the disk said.
        began: seconds of the clock.
        stalled: seconds that training waited for it so far.
    """

    step: int
    best: bool
    facts: Mapping[str, Any]
    thread: threading.Thread
    outcome: list[Part | OSError]
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
        self.saved, self.saves, self.failures = first_step - 1, 0, 0
        self.said = ""
        self.pending: Pending | None = None
        self.done: dict[str, float] = {}

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
        facts = {**shared, "progress": [json.loads(each) for each in gather_texts(json.dumps(progress), self.world)]}
        random = {f"{RANDOM}{self.world.rank}/{name}": each for name, each in held.random.items()}
        outcome: list[Part | OSError] = []
        thread = threading.Thread(target=self.write, args=(step, held.tensors | random, outcome), name="checkpoint", daemon=True)
        thread.start()
        self.pending = Pending(step, best, facts, thread, outcome, began, time.perf_counter() - began)
        if not self.overlap:
            self.wait()

    def write(self, step: int, tensors: dict[str, Any], outcome: list[Part | OSError]) -> None:
        """What the thread does."""
        try:
            outcome.append(commit.write_part(self.folder, step, self.world.rank, self.world.size, tensors))
        except OSError as error:
            outcome.append(error)

    def writing(self) -> bool:
        """Whether this rank's part is not yet written."""
        return self.pending is not None and self.pending.thread.is_alive()

    def wait(self) -> None:
        """Returns when nothing is being written; all ranks call it."""
        if self.pending is not None:
            began = time.perf_counter()
            self.pending.thread.join()
            self.pending = self.pending._replace(stalled=self.pending.stalled + time.perf_counter() - began)
            self.settle()

    def settle(self) -> None:
        """Makes the checkpoint whole, which all ranks have written, or gives it up where one of them could not."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        pending.thread.join()
        own = pending.outcome[0] if pending.outcome else OSError("the thread that wrote it has died")
        row = np.zeros((1, 41), np.uint8)  # 1: failed; 8: size; 32: checksum
        if isinstance(own, OSError):
            row[0, 0] = 1
        else:
            row[0, 1:9] = np.array([own.size], np.int64).view(np.uint8)
            row[0, 9:] = np.frombuffer(bytes.fromhex(own.digest), np.uint8)
        found = gather_arrays(row, self.world)
        parts = [Part(int(each[1:9].copy().view(np.int64)[0]), each[9:].tobytes().hex()) for each in found]
        failed = np.flatnonzero(found[:, 0]).tolist()
        error = own if isinstance(own, OSError) else None
        speaker = failed[0] if failed else 0
        if not failed:
            error = from_first(self.commit(pending, parts) if self.world.rank == 0 else None, self.world)
        if error is None and not failed:
            self.saved, self.saves = pending.step, self.saves + 1
            seconds, size = time.perf_counter() - pending.began, sum(part.size for part in parts)
            self.done = {"save_seconds": seconds, "save_stall_seconds": pending.stalled, "save_gb": size / 1e9}
            return
        self.failures += 1
        if self.world.rank == 0:
            commit.give_up(self.folder, pending.step)
        self.said = gather_texts(said(error), self.world)[speaker]
        if self.world.rank == speaker:
            before = f"that of step {self.saved:,} stays" if self.saved else "there is none before it"
            self.warn(f"the checkpoint of step {pending.step:,} could not be saved in {self.folder} ({self.said}); {before}")

    def commit(self, pending: Pending, parts: list[Part]) -> OSError | None:
        try:
            commit.commit(self.folder, pending.facts, parts, keep=self.keep, best=pending.best)
        except OSError as error:
            return error
        return None

    def figures(self) -> dict[str, float]:
        """Of the checkpoint that was finished since the last call: seconds in all, those that training waited, and size."""
        done, self.done = self.done, {}
        return done

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


def said(error: OSError | None) -> str:
    """What the disk said, in one line."""
    return " ".join(str((error and error.strerror) or error or "").split())
