"""What ranks send each other: every collective that reaches torch's process groups, whoever called it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sent(NamedTuple):
    """One collective on this rank.

    Attributes:
        kind: allreduce | allgather | reduce | reduce_scatter | broadcast | barrier.
        dtype: of its tensors.
        numbers: elements that this rank brings; of a broadcast, that go round.
        bytes: that this rank must send where the collective is a ring: (W - 1) / W of what is reduced or scattered,
            W - 1 times what is gathered, both for an all-reduce.
    """

    kind: str
    dtype: torch.dtype | None
    numbers: int
    bytes: float


def bytes_sent(kind: str, size: int, ranks: int) -> float:
    """Of a ring, for `size` bytes that this rank brings."""
    share = (ranks - 1) / ranks
    return {"allreduce": 2 * share, "reduce": share, "reduce_scatter": share, "allgather": ranks - 1.0}.get(kind, share) * size


class Counter(TorchDispatchMode):
    """Lists the operators of the name space c10d."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks, self.found = ranks, []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__.split(".")[0].strip("_")
            words = {"allreduce": "allreduce", "reduce_scatter": "reduce_scatter", "allgather": "allgather", "reduce": "reduce"}
            kind = next((kind for word, kind in words.items() if name.startswith(word)), name)
            # gathers name their output first, then what this rank brings
            brought = args[1] if kind in ("allgather", "reduce_scatter") else args[0]
            tensors = list(leaves(brought))
            numbers = sum(each.numel() for each in tensors)
            size = sum(each.numel() * each.element_size() for each in tensors)
            dtype = tensors[0].dtype if tensors else None
            self.found.append(Sent(kind, dtype, numbers, bytes_sent(kind, size, self.ranks)))
        return func(*args, **(kwargs or {}))


def leaves(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from leaves(each)


@contextmanager
def last_step(ranks: int) -> Iterator[list[Sent]]:
    """Collects the collectives of a contrastive run's last step, from its first chunk to the end of its update."""
    from bgetrain.engine.deepspeed import Engine
    from bgetrain.stage import contrastive

    found: list[Sent] = []
    counters: list[Counter] = []
    plain_update, plain_step = contrastive.update_once, Engine.step

    def update(*arguments: Any) -> Any:
        counters.append(Counter(ranks))
        counters[-1].__enter__()
        return plain_update(*arguments)

    def step(engine: Any) -> float:
        try:
            return plain_step(engine)
        finally:
            counters[-1].__exit__(None, None, None)
            found[:] = counters[-1].found

    contrastive.update_once, Engine.step = update, step
    try:
        yield found
    finally:
        contrastive.update_once, Engine.step = plain_update, plain_step
