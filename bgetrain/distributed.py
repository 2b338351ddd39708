"""Every collective of the project; nothing else calls torch.distributed.

With one rank each function returns at once. Ranks must call them in the same order.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from bgetrain.types import World

T = TypeVar("T")
CALLS = itertools.count()  # of `after_first`, in the same order on every rank


def start(rank: int, size: int, local_rank: int, local_size: int, timeout_minutes: float) -> World:
    """Joins the process group, or returns the one that this process is in.

    Several ranks meet at MASTER_ADDR:MASTER_PORT; a single one needs no port. CPU tensors travel by gloo, GPU tensors
    by NCCL.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu and local_size > torch.cuda.device_count():
        raise ValueError(f"num_processes={local_size} exceeds the {torch.cuda.device_count()} GPUs of this machine")
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        timeout = timedelta(minutes=timeout_minutes)
        store = dist.HashStore() if size == 1 else None
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout, store=store)
    return World(rank, size, local_rank, local_size, device)


def stop() -> None:
    """Leaves the process group of several ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


def share(total: int, world: World) -> range:
    """The part of `total` that this rank holds: floor(r * total / W) up to floor((r + 1) * total / W)."""
    return range(world.rank * total // world.size, (world.rank + 1) * total // world.size)


def shares(total: int, world: World) -> list[int]:
    """Sizes of all ranks' parts of `total`; they differ by one at the most."""
    return [(rank + 1) * total // world.size - rank * total // world.size for rank in range(world.size)]


def gather_rows(rows: Tensor, counts: Sequence[int], world: World) -> Tensor:
    """Lays the rows of all ranks under each other, in rank order; differentiable.

    The gradient of a rank's rows is the sum over ranks of the gradients of its slice.

    Args:
        rows: [counts[rank], D].
        counts: rows on each rank.

    Returns:
        [sum(counts), D].
    """
    if world.size == 1:
        return rows
    return GatherRows.apply(rows, tuple(counts), world.rank)


class GatherRows(torch.autograd.Function):
    """All-gather forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        # ranks may differ by a row: collectives want equal shapes
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        counts, rank = ctx.counts, ctx.rank
        if gradient.is_cuda:
            parts = [gradient.new_zeros(max(counts), *gradient.shape[1:]) for _ in counts]
            for part, piece in zip(parts, gradient.split(counts), strict=True):
                part[: len(piece)] = piece
            mine = torch.empty_like(parts[rank])
            dist.reduce_scatter(mine, parts)
            return mine[: counts[rank]], None, None
        gradient = gradient.contiguous().clone()  # gloo has no reduce-scatter
        dist.all_reduce(gradient)
        return gradient.split(counts)[rank], None, None


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """Adds `values` of all ranks, elementwise; not differentiable."""
    if world.size == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def max_over_ranks(value: int, world: World) -> int:
    """The largest `value` of any rank, exchanged between hosts without waiting for the GPUs."""
    return max_of_each([value], world)[0]


def max_of_each(values: Sequence[int], world: World) -> list[int]:
    """As `max_over_ranks` for several values in one exchange; the same number of them on every rank."""
    if world.size == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return [int(value) for value in largest]


def gather_arrays(array: np.ndarray, world: World) -> np.ndarray:
    """Lays the arrays of all ranks under each other, in rank order; first dimensions may differ.

    Args:
        array: [n, ...] on this rank, the same trailing shape and type everywhere.

    Returns:
        [sum of n, ...] on every rank.
    """
    if world.size == 1:
        return array
    own = torch.from_numpy(np.ascontiguousarray(array))
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(sizes, torch.tensor([len(own)]))
    counts = [int(size) for size in sizes]
    padded = own.new_zeros(max(counts), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).numpy()


def gather_texts(text: str, world: World) -> list[str]:
    """The texts of all ranks, one line each, in rank order."""
    line = np.frombuffer((text + "\n").encode(), np.uint8)
    return gather_arrays(line, world).tobytes().decode().splitlines()


def from_rank(array: np.ndarray, owner: int, world: World) -> np.ndarray:
    """What rank `owner` has, on every rank.

    Args:
        array: on the owner what is sent; elsewhere any array of the same shape and type.
        owner: a rank.
    """
    if world.size == 1:
        return array
    sent = torch.from_numpy(np.array(array, order="C"))
    dist.broadcast(sent, src=owner)
    return sent.numpy()


def gather_to(array: np.ndarray, owner: int, world: World) -> list[np.ndarray] | None:
    """The arrays of all ranks on rank `owner`, in rank order; None elsewhere.

    Args:
        array: of the same shape and type on every rank.
        owner: a rank.
    """
    if world.size == 1:
        return [array]
    own = torch.from_numpy(np.ascontiguousarray(array))
    parts = [torch.empty_like(own) for _ in range(world.size)] if world.rank == owner else None
    dist.gather(own, parts, dst=owner)
    return None if parts is None else [part.numpy() for part in parts]


def from_first(value: Any, world: World) -> Any:
    """What rank 0 has, on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def after_first(world: World, make: Callable[[], T]) -> T:
    """Calls `make` on rank 0 and then, when its caches are filled, on the others.

    They wait at the ranks' meeting place and not in a collective: reading a large set may take longer than one may wait.
    """
    if world.size == 1:
        return make()
    name = f"after_first/{next(CALLS)}"
    store = dist.distributed_c10d._get_default_store()
    if world.rank > 0:
        store.wait([name], timedelta(days=30))
    made = make()
    if world.rank == 0:
        store.set(name, "done")
    return made


def barrier(world: World) -> None:
    """Waits until every rank is here."""
    max_over_ranks(0, world)
