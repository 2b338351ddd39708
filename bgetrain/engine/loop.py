"""The only training loop."""

import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bgetrain.distributed import gather_arrays, max_of_each, max_over_ranks, sum_over_ranks
from bgetrain.engine import checkpoint
from bgetrain.engine.ahead import ahead
from bgetrain.engine.best import Scoring
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.interrupts import asked_to_stop
from bgetrain.engine.machine import peak_bytes
from bgetrain.types import Interrupted, LossOutput, World

KEEP = 2  # checkpoints that stay: the newest, and one before in case it is damaged


class Counts(NamedTuple):
    """What one step consumed on this rank.

    Attributes:
        queries: texts or queries, as `global_batch` counts them.
        tokens: real tokens.
        padded: tokens with padding.
        seconds: spent on parts of the step that are told by name, as shares of the time: `NAME_share`.
    """

    queries: int
    tokens: int
    padded: int
    seconds: Mapping[str, float] = {}


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
    output_dir: str,
    num_workers: int,
    world: World,
    describe: Callable[[Any, list[int]], list[dict[str, Any]]] | None = None,
    scoring: Scoring | None = None,
) -> dict[str, float]:
    """Trains from `first_step` to `total_steps`.

    Args:
        engine: holds the module and its optimizer.
        batch_at: this rank's batch of a step, with `epoch`; called ahead of time.
        update: (step, batch) -> loss and counts; leaves the gradient in the engine.
        first_step: counted from 1; above 1 after a resume.
        total_steps: the last step.
        schedule: (step, total_steps) -> factor of the peak learning rate.
        log: called on rank 0 every `log_every` steps and at the end.
        log_every: steps.
        save_every: steps between checkpoints.
        output_dir: receives `checkpoints/`, and `nonfinite/` where a loss is not finite.
        num_workers: processes that make batches ahead of time; 0: a thread does.
        world: all ranks.
        describe: (batch, places of queries in it) -> what to write of rows at fault; None: they cannot be told.
        scoring: of held-out data; None: there is none.

    Returns:
        The last logged metrics.

    Raises:
        FloatingPointError: a loss that is not finite, on all ranks alike; nothing was updated by it.
        Interrupted: asked to stop; the step in hand is done and saved.
    """
    folder = Path(output_dir) / "checkpoints"
    window, steps = Window(world, total_steps), range(first_step, total_steps + 1)
    logged: dict[str, float] = {}
    with asked_to_stop() as asked, ahead(batch_at, steps, num_workers) as batches:
        for step in steps:
            batch = next(batches)
            engine.set_rate(schedule(step, total_steps))
            rate = engine.rate()
            output, counts = update(step, batch)
            # one exchange for both, before the update: a rank that left alone would let the others hang
            stop, broken = max_of_each([int(asked.is_set()), int(not math.isfinite(float(output.loss)))], world)
            if broken:
                rows = describe and partial(describe, batch)
                raise FloatingPointError(report(output, rows, step, Path(output_dir) / "nonfinite", world))
            norm = engine.step()
            if not math.isfinite(norm):
                raise FloatingPointError(f"gradient is not finite at step {step} on rank {world.rank}: {norm}; not saved")
            window.add(output, counts, norm)
            due = scoring is not None and not stop and (step % scoring.every == 0 or step == total_steps)
            if step % log_every == 0 or step in (total_steps, first_step) or stop or due:
                logged = {**window.close(step), "lr": rate, "epoch": batch.epoch, **skipped(engine)}
                if due and scoring is not None:
                    logged |= scoring.score()
                    window.began = time.perf_counter()  # its seconds are not the next steps'
                log(step, logged)
            if step % save_every == 0 or stop or step == total_steps:
                save(engine, folder, step, world)
            if stop and step < total_steps:
                raise Interrupted(f"interrupted, step {step} of {total_steps} is saved in {folder}")
    return logged


def skipped(engine: Engine) -> dict[str, float]:
    """fp16's figure of updates left out; none in another precision."""
    count = engine.skipped_steps()
    return {} if count is None else {"skipped_steps": float(count)}


def report(
    output: LossOutput, describe: Callable[[list[int]], list[dict[str, Any]]] | None, step: int, folder: Path, world: World
) -> str:
    """Writes this rank's rows that made the loss of a step not finite to `folder`; returns a line, the same on every rank.

    Args:
        output: of this rank.
        describe: (places of queries in this rank's batch) -> what to write of each.
        step: of all ranks.
        folder: receives `step_N.rank_R.jsonl`.
        world: all ranks; every one calls this.
    """
    faults = torch.zeros(0, dtype=torch.uint8) if output.faults is None or describe is None else output.faults.byte().cpu()
    grade = max_over_ranks(int(faults.max()) if len(faults) else 0, world)
    places = (faults == grade).nonzero()[:, 0].tolist() if grade else []
    if places and describe is not None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in describe(places))
        (folder / f"step_{step}.rank_{world.rank}.jsonl").write_text(lines, "utf8")
    found = gather_arrays(np.array([[float(output.loss), len(places)]]), world)
    ranks = np.flatnonzero(found[:, 1] if grade else ~np.isfinite(found[:, 0])).tolist()
    words = f"loss is not finite at step {step} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
    count = int(found[:, 1].sum())
    if not count:
        return f"{words}: {found[ranks[0], 0]}"
    files = str(folder / f"step_{step}.rank_{ranks[0] if len(ranks) == 1 else '*'}.jsonl")
    return f"{words}: {found[~np.isfinite(found[:, 0]), 0][0]}, by {count} row{'s' * (count > 1)}, written to {files}"


def save(engine: Engine, folder: Path, step: int, world: World) -> None:
    """Writes a checkpoint; nobody leaves before it is written."""
    state = engine.state(step)
    if world.rank == 0:
        checkpoint.save(folder, state, keep=KEEP)
    max_over_ranks(0, world)


class Window:
    """Figures since the last log line; averaged over steps, added over ranks."""

    def __init__(self, world: World, total_steps: int) -> None:
        self.world, self.total_steps = world, total_steps
        self.began = time.perf_counter()
        self.start()

    def start(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.times: dict[str, int] = {}  # a figure need not come with every step
        self.counts, self.steps, self.grad_norm = [0, 0, 0], 0, 0.0
        self.parts: dict[str, float] = {}

    def add(self, output: LossOutput, counts: Counts, grad_norm: float) -> None:
        for name, value in {"loss": output.loss, **output.metrics}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.times[name] = self.times.get(name, 0) + 1
        self.counts = [have + more for have, more in zip(self.counts, counts[:3], strict=True)]
        for name, seconds in counts.seconds.items():
            self.parts[name] = self.parts.get(name, 0.0) + seconds
        self.steps += 1
        self.grad_norm = grad_norm

    def close(self, step: int) -> dict[str, float]:
        """The figures of the window, the same on every rank; starts the next one."""
        own = torch.stack([value.detach().double().cpu() for value in self.sums.values()])
        counted = torch.tensor([*self.counts, *self.parts.values()], dtype=torch.float64)
        total = sum_over_ranks(torch.cat([own, counted]), self.world).tolist()
        queries, tokens, padded, *parts = total[len(own) :]
        now = time.perf_counter()
        seconds, self.began = now - self.began, now
        figures = {name: value / self.times[name] for name, value in zip(self.sums, total, strict=False)}
        figures |= {f"{name}_share": part / seconds / self.world.size for name, part in zip(self.parts, parts, strict=True)}
        figures |= {
            "grad_norm": self.grad_norm,
            "queries_per_second": queries / seconds,
            "tokens_per_second": tokens / seconds,
            "padding_ratio": 1 - tokens / padded,
            "memory_gb": max_over_ranks(peak_bytes(self.world), self.world) / 1e9,
            "progress_ratio": step / self.total_steps,
            "seconds_left": (self.total_steps - step) * seconds / self.steps,
        }
        self.start()
        return figures
