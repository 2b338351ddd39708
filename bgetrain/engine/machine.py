"""The machine: what memory is free, what this process has held, giving back, and the time of a part of the work."""

import ctypes
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bgetrain.types import World


def free_bytes(world: World) -> int:
    """Memory that this rank may still take: of its GPU, or its share of what the machine and its container leave.

    On a CPU gaps between blocks of memory take some besides, which a share of what is free must cover.
    """
    if world.device.type == "cuda":
        unused = torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
        return int(torch.cuda.mem_get_info(world.device)[0]) + unused
    return host_bytes(Path("/")) // world.local_size


def peak_bytes(world: World) -> int:
    """The most memory that this rank has held so far: of its GPU, or resident on a CPU; 0 where it is not known."""
    if world.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(world.device))
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def trim() -> None:
    """Gives memory that was freed back to the system, where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def host_bytes(root: Path) -> int:
    """MemAvailable, or what the control groups of this process leave where that is less; 0 where it is not known.

    Args:
        root: of the file system.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    found = [int(lines["MemAvailable"].split()[0]) * 1024]
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            inner = mount / place.strip("/")
            # a container may show its own group as the mount, under the path that the host knows it by
            found += [left for folder in {inner, *inner.parents} if folder.is_relative_to(mount) for left in group_left(folder)]
    return max(0, min(found))


def group_left(folder: Path) -> Iterator[int]:
    """What one control group leaves, if it has a limit (version 2's names, then version 1's)."""
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        if not (folder / limit).is_file() or not (most := (folder / limit).read_text().strip()).isdigit():
            continue
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # files read and not used lately are counted but given back on demand
        yield int(most) - int((folder / usage).read_text()) + int(stat.get(cache, 0))


class Stopwatch:
    """Adds up the seconds of a device on some part of its work; used as a context, as often as wanted.

    A GPU works behind the program's back: there events are recorded in its queue and read at the end.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.total = device.type == "cuda", 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self.cuda:
            self.events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.events[-1][0].record()
        else:
            self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.events[-1][1].record()
        else:
            self.total += time.perf_counter() - self.began

    def seconds(self) -> float:
        """The sum so far; waits for the GPU to reach the last event."""
        if self.events:
            self.events[-1][1].synchronize()
        return self.total + sum(first.elapsed_time(last) for first, last in self.events) / 1000
