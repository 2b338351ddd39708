"""What goes wrong with numbers: losses and gradients that are not finite, losses that leap."""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgetrain.distributed import gather_arrays, max_over_ranks
from bgetrain.types import LossOutput, World

KNOWN = 50  # losses that the next one is held against; our choice
LEAST = 10  # that must be there; our choice
FAR = 6.0  # standard deviations, estimated from the median, above which a loss has leapt; our choice
DEVIATION = 1.4826  # of a normal distribution: standard deviation / median absolute deviation

Describe = Callable[[Any, list[int]], list[dict[str, Any]]]


class Guard:
    """Leaves out updates that are not finite, as many in a row as it may, and warns of losses that leap.

    Args:
        most: updates in a row that may be left out; 0: the first ends the run.
        folder: receives the rows of steps that were not finite.
        describe: (batch, places of queries in it) -> what to write of rows at fault; None: they cannot be told.
        world: all ranks.
        warn: told on rank 0 what happened, in one line.
        state: what `state` returned, of the run that goes on; empty at its beginning.
    """

    def __init__(
        self,
        most: int,
        folder: Path,
        describe: Describe | None,
        world: World,
        warn: Callable[[str], None],
        state: Mapping[str, Any],
    ) -> None:
        self.most, self.folder, self.describe, self.world, self.warn = most, folder, describe, world, warn
        self.in_row, self.total = state.get("in_row", 0), state.get("total", 0)
        self.losses: list[float] = list(state.get("losses", []))

    def state(self) -> dict[str, Any]:
        return {"in_row": self.in_row, "total": self.total, "losses": self.losses}

    def figures(self) -> dict[str, float]:
        """Updates left out so far; none where the first ends the run."""
        return {"nonfinite_steps": float(self.total)} if self.most else {}

    def passed(self) -> None:
        """A step was finite."""
        self.in_row = 0

    def leave_out(self, what: str, output: LossOutput, batch: Any, count: int, step: int) -> None:
        """Writes the rows of a step that is not finite, and counts it; all ranks call it.

        Args:
            what: loss | gradient.
            output: of this rank.
            batch: of this rank.
            count: queries in it.
            step: of all ranks.

        Raises:
            FloatingPointError: no more of them may be left out.
        """
        rows = self.describe and partial(self.describe, batch)
        told = report(what, output, rows, count, step, self.folder, self.world)
        self.in_row, self.total = self.in_row + 1, self.total + 1
        if self.in_row > self.most:
            many = f"; on_nonfinite=skip({self.most}) leaves out no more than that in a row" if self.most else ""
            raise FloatingPointError(told + many)
        if self.world.rank == 0:
            self.warn(f"{told}; its update is left out, {self.in_row} of {self.most} in a row")

    def watch(self, step: int, loss: float) -> bool:
        """Warns where a logged loss leaps above those before it; returns whether it does."""
        if not math.isfinite(loss):  # which is told elsewhere
            return False
        known = self.losses[-KNOWN:]
        leapt = False
        if len(known) >= LEAST:
            middle = statistics.median(known)
            spread = DEVIATION * statistics.median(abs(each - middle) for each in known)
            leapt = loss > middle + FAR * max(spread, 0.01 * abs(middle))
        if leapt and self.world.rank == 0:
            self.warn(f"loss {loss:.4f} at step {step} has leapt: the median of the {len(known)} lines before is {middle:.4f}")
        self.losses = [*known, loss][-KNOWN:]
        return leapt


def report(
    what: str,
    output: LossOutput,
    describe: Callable[[list[int]], list[dict[str, Any]]] | None,
    count: int,
    step: int,
    folder: Path,
    world: World,
) -> str:
    """Writes this rank's rows of a step that is not finite to `folder`; returns a line, the same on every rank.

    Args:
        what: loss | gradient.
        output: of this rank.
        describe: (places of queries in this rank's batch) -> what to write of each.
        count: queries in this rank's batch.
        step: of all ranks.
        folder: receives `step_N.rank_R.jsonl`.
        world: all ranks; every one calls this.
    """
    loss = float(output.loss)
    faults = torch.zeros(0, dtype=torch.uint8) if output.faults is None else output.faults.byte().cpu()
    grade = max_over_ranks(int(faults.max()) if len(faults) else 0, world)
    places = (faults == grade).nonzero()[:, 0].tolist() if grade else []
    if not grade and (what == "gradient" or not np.isfinite(loss)):
        places = list(range(count))  # nobody knows which: all of the batch
    rows = describe(places) if describe and places else []
    written = bool(rows) and write_rows(rows, folder, f"step_{step}.rank_{world.rank}.jsonl")
    found = gather_arrays(np.array([[loss, len(places) if written else 0]]), world)
    at_fault = found[:, 1] > 0 if grade else ~np.isfinite(found[:, 0])
    ranks = np.flatnonzero(at_fault).tolist()
    words = f"{what} is not finite at step {step}"
    if what == "loss":
        value = found[~np.isfinite(found[:, 0]), 0][0]
        words += f" on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: {value}"
    total = int(found[:, 1].sum())
    if not total:
        return words
    writers = np.flatnonzero(found[:, 1]).tolist()
    files = folder / f"step_{step}.rank_{writers[0] if len(writers) == 1 else '*'}.jsonl"
    cause = "by" if grade else "in a batch of"
    return f"{words}, {cause} {total} row{'s' * (total > 1)}, written to {files}"


def write_rows(rows: list[dict[str, Any]], folder: Path, name: str) -> bool:
    """Writes what can be written: a full disk is no reason to hide what went wrong."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(lines, "utf8")
    except OSError:
        return False
    return True
