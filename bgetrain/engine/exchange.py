"""What can only be measured by all ranks together: collectives, links, pace, clocks, a folder that all see."""

import contextlib
import os
import secrets
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.types import World

ROUNDS = 3  # the best counts: something else may run on a machine for a moment
BYTES = {"cpu": 10**6, "cuda": 64 * 10**6}  # exchanged by each collective, whatever the number of ranks
WORK = {"cpu": 192, "cuda": 4096}  # rows of the square matrices multiplied
PERIOD = 31  # of the pattern: with up to 5,000 ranks every sum is exact in fp32
PATIENCE_SECONDS = 3.0  # a network file system may show another machine's file a moment later


class Traffic(NamedTuple):
    """What collectives over all ranks gave.

    Attributes:
        wrong: collective -> elements of this rank's result that are not what they must be.
        rates: collective -> bytes per second over the slowest link, of the rank that was slowest.
    """

    wrong: dict[str, int]
    rates: dict[str, float]


def traffic(world: World) -> Traffic:
    """Adds up and gathers numbers over all ranks, checks every element and measures the time; nothing for one rank."""
    if world.size == 1:
        return Traffic({}, {})
    count = BYTES[world.device.type] // 4
    pattern = (torch.arange(count, device=world.device) % PERIOD).float()
    whole = pattern + world.rank
    part = whole[: max(1, count // world.size)]
    jobs: dict[str, tuple[Callable[[], Tensor], Tensor, float]] = {
        # the share of all bytes that crosses the busiest link, as nccl-tests counts: a sum goes around twice
        "all-reduce": (
            lambda: distributed.sum_over_ranks(whole, world),
            pattern * world.size + world.size * (world.size - 1) / 2,
            2 * whole.nbytes * (world.size - 1) / world.size,
        ),
        "all-gather": (
            lambda: distributed.gather_rows(part, [len(part)] * world.size, world),
            torch.cat([pattern[: len(part)] + rank for rank in range(world.size)]),
            part.nbytes * (world.size - 1),
        ),
    }
    found = Traffic({}, {})
    for name, (send, expected, carried) in jobs.items():
        found.wrong[name] = int((send() != expected).sum())  # and what a first call sets up is not measured
        found.rates[name] = carried / max(distributed.gather_objects(best(send, world), world))
    return found


def links(world: World) -> list[float]:
    """Bytes per second that arrive at each rank from the one before, all ranks sending at once; none for one rank."""
    if world.size == 1:
        return []
    sent = torch.zeros(BYTES[world.device.type] // 16, device=world.device)
    distributed.pass_on(sent, world)
    return [
        sent.nbytes / each for each in distributed.gather_objects(best(lambda: distributed.pass_on(sent, world), world), world)
    ]


def paces(world: World) -> list[float]:
    """Seconds that each rank takes to multiply two matrices, without waiting for others; none for one rank."""
    if world.size == 1:
        return []
    side = WORK[world.device.type]
    matrix = torch.ones(side, side, device=world.device)
    multiply(matrix)
    return distributed.gather_objects(best(lambda: multiply(matrix), world), world)


def multiply(matrix: Tensor) -> Tensor:
    return matrix @ matrix


def best(work: Callable[[], object], world: World) -> float:
    """Seconds of the fastest of some rounds, all ranks beginning together."""
    times = []
    for _ in range(ROUNDS):
        distributed.barrier(world)
        settle(world)
        began = time.perf_counter()
        work()
        settle(world)
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-9)


def settle(world: World) -> None:
    """Waits until a GPU has done what it was told to do."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def clock_offset(world: World) -> float:
    """Seconds by which this rank's clock is ahead of the middle of all ranks'.

    Read when all leave a barrier, which they do within milliseconds; the smallest of some rounds counts.
    """
    offsets = []
    for _ in range(ROUNDS):
        distributed.barrier(world)
        now = time.time()
        offsets.append(now - statistics.median(distributed.gather_objects(now, world)))
    return min(offsets, key=abs)


class Seen(NamedTuple):
    """A folder as ranks see it.

    Attributes:
        fault: why this rank cannot write there; None: it can.
        found: what this rank reads of what rank 0 wrote; None: nothing.
        wanted: what rank 0 wrote.
    """

    fault: str | None
    found: str | None
    wanted: str


def common_folder(folder: Path, world: World) -> Seen:
    """Writes a file into a folder on each rank, reads rank 0's on all, and takes them away again."""
    wanted = distributed.from_first(secrets.token_hex(8) if world.rank == 0 else "", world)
    own, first = (folder / f".preflight-{wanted}.{rank}" for rank in (world.rank, 0))
    fault, found = None, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own.write_text(wanted, "utf8")
        with own.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        fault = error.strerror or str(error)
    distributed.barrier(world)
    last = time.monotonic() + PATIENCE_SECONDS * (world.size > 1)
    while found is None:
        with contextlib.suppress(OSError):
            found = first.read_text("utf8")
        if time.monotonic() > last:
            break
        if found is None:
            time.sleep(0.05)
    distributed.barrier(world)
    with contextlib.suppress(OSError):
        own.unlink()
    return Seen(fault, found, wanted)
