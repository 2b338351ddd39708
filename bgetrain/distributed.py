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

from bgetrain.progress import collective
from bgetrain.types import World

T = TypeVar("T")
CALLS = itertools.count()  # of `after_first`, in the same order on every rank


def start(
    rank: int,
    size: int,
    local_rank: int,
    local_size: int,
    timeout_minutes: float,
    *,
    threads: int | None = None,
    has_own_gpus: bool = False,
    meet: Callable[[float], Any] | None = None,
) -> World:
    """Joins the process group, or returns the one that this process is in.

    Several ranks meet at MASTER_ADDR:MASTER_PORT, or where `meet` says; a single one needs no port. CPU tensors travel by
    gloo, GPU tensors by NCCL. `cluster.place.Place` says what the arguments are.

    Raises:
        ValueError: fewer GPUs than ranks; or the ranks do not find each other.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu and not has_own_gpus and local_size > torch.cuda.device_count():
        raise ValueError(f"num_processes={local_size} exceeds the {torch.cuda.device_count()} GPUs of this machine")
    device = torch.device("cuda", 0 if has_own_gpus else local_rank) if on_gpu else torch.device("cpu")
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local_size))
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        # a rank's own watch is on for `timeout_minutes`; it tells more than the backend, which should come second
        timeout = timedelta(minutes=1.1 * timeout_minutes, seconds=5)
        store = dist.HashStore() if size == 1 else store_at(meet(60 * timeout_minutes), timeout) if meet else None
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout, store=store)
    return World(rank, size, local_rank, local_size, device)


def store_at(meeting: Any, timeout: timedelta) -> dist.Store:
    """The ranks' store, kept by the rank that has the listener."""
    kept = {"is_master": meeting.listener is not None, "master_listen_fd": meeting.listener}
    return dist.TCPStore(meeting.host, meeting.port, None, timeout=timeout, wait_for_workers=False, **kept)


def stop() -> None:
    """Leaves the process group of several ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


def own_connection(timeout_seconds: float) -> Any:
    """A connection of its own to the ranks' meeting place: calls from two threads on one would wait for each other.

    Returns:
        A key-value store of torch; what it cannot do within `timeout_seconds` raises, or hangs where its keeper is frozen.
    """
    shared: Any = dist.distributed_c10d._get_default_store()
    store = shared.clone()
    store.set_timeout(timedelta(seconds=timeout_seconds))
    return store


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error says that another rank could not be reached, or did not come in time."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(each in str(error) for each in words))


def is_timeout(error: BaseException) -> bool:
    """Whether such an error says that another rank did not come in time."""
    return any(each in str(error) for each in ("imed out", "imeout"))


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
    @collective
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        # ranks may differ by a row: collectives want equal shapes
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @collective
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


@collective
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


@collective
def max_of_each(values: Sequence[int], world: World) -> list[int]:
    """As `max_over_ranks` for several values in one exchange; the same number of them on every rank."""
    if world.size == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return [int(value) for value in largest]


@collective
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


@collective
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


@collective
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


@collective
def from_first(value: Any, world: World) -> Any:
    """What rank 0 has, on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@collective
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


@collective
def gather_objects(value: T, world: World) -> list[T]:
    """What every rank has, on every rank, in rank order; small things that can be pickled."""
    if world.size == 1:
        return [value]
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, value)
    return found


@collective
def pass_on(tensor: Tensor, world: World) -> Tensor:
    """Sends a tensor to the next rank, the last one to the first, and returns what the rank before sent.

    Args:
        tensor: of the same shape and type on every rank.
        world: all ranks.
    """
    received = torch.empty_like(tensor)
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    for each in dist.batch_isend_irecv([dist.P2POp(dist.isend, tensor, after), dist.P2POp(dist.irecv, received, before)]):
        each.wait()
    return received


def meeting_place(world: World) -> tuple[str, int] | None:
    """Host and port of the store where the ranks met; None where there is one rank, or another kind of store."""
    store = dist.distributed_c10d._get_default_store() if world.size > 1 else None
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return (store.host, store.port) if isinstance(store, dist.TCPStore) else None
