"""Figures of the steps since the last log line, through a resume as well."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from bgetrain.distributed import max_over_ranks, sum_over_ranks
from bgetrain.engine.machine import peak_bytes
from bgetrain.types import LossOutput, World


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


class Window:
    """Sums of this rank; averaged over steps and added over ranks when a line is due.

    Args:
        world: all ranks.
        total_steps: of the run.
        states: what `state` returned on each rank, of the run that goes on; none at its beginning. Where ranks are not as
            many as then, the first one takes the sums of all.
    """

    def __init__(self, world: World, total_steps: int, states: Sequence[Mapping[str, Any]]) -> None:
        self.world, self.total_steps = world, total_steps
        self.began = time.perf_counter()
        self.start()
        if states:
            same = len(states) == world.size
            chosen = [states[world.rank]] if same else list(states) if world.rank == 0 else []
            self.take(states[0], chosen)

    def start(self) -> None:
        self.sums: dict[str, torch.Tensor | float] = {}
        self.times: dict[str, int] = {}  # a figure need not come with every step
        self.counts, self.steps, self.grad_norm = [0, 0, 0], 0, 0.0
        self.parts: dict[str, float] = {}

    def take(self, shared: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> None:
        """Goes on from sums: what is the same for all ranks, and the sums of those whose place this one takes."""
        self.times, self.steps, self.grad_norm = dict(shared["times"]), shared["steps"], shared["grad_norm"]
        self.began -= shared["seconds"]
        self.sums = {name: sum(each["sums"][name] for each in own) for name in shared["sums"]}
        self.parts = {name: sum(each["parts"][name] for each in own) for name in shared["parts"]}
        self.counts = [sum(each["counts"][place] for each in own) for place in range(3)]

    def state(self) -> dict[str, Any]:
        """Everything, as JSON has it: doubles come back bit for bit."""
        return {
            "sums": {name: float(value) for name, value in self.sums.items()},
            "times": self.times,
            "counts": self.counts,
            "steps": self.steps,
            "grad_norm": self.grad_norm,
            "parts": self.parts,
            "seconds": time.perf_counter() - self.began,
        }

    def add(self, output: LossOutput, counts: Counts, grad_norm: float) -> None:
        for name, value in {"loss": output.loss, **output.metrics}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
            self.times[name] = self.times.get(name, 0) + 1
        self.counts = [have + more for have, more in zip(self.counts, counts[:3], strict=True)]
        for name, seconds in counts.seconds.items():
            self.parts[name] = self.parts.get(name, 0.0) + seconds
        self.steps += 1
        self.grad_norm = grad_norm

    def close(self, step: int) -> dict[str, float]:
        """The figures of the window, the same on every rank; starts the next one."""
        own = torch.tensor([float(value) for value in self.sums.values()], dtype=torch.float64)
        counted = torch.tensor([*self.counts, *self.parts.values()], dtype=torch.float64)
        total = sum_over_ranks(torch.cat([own, counted]), self.world).tolist()
        queries, tokens, padded, *parts = total[len(own) :]
        now = time.perf_counter()
        seconds, self.began = now - self.began, now
        figures = {name: value / self.times[name] for name, value in zip(self.sums, total, strict=False)}
        figures |= {f"{name}_share": part / seconds / self.world.size for name, part in zip(self.parts, parts, strict=True)}
        figures |= {"grad_norm": self.grad_norm} if self.steps else {}
        figures |= {
            "queries_per_second": queries / seconds,
            "tokens_per_second": tokens / seconds,
            "padding_ratio": 1 - tokens / max(padded, 1),
            "memory_gb": max_over_ranks(peak_bytes(self.world), self.world) / 1e9,
            "progress_ratio": step / self.total_steps,
            "seconds_left": (self.total_steps - step) * seconds / max(self.steps, 1),
        }
        self.start()
        return figures
