"""Writing a checkpoint: each rank its part, then all of it at once."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bgetrain.engine.checkpoint import (
    FORMAT,
    STATE,
    Part,
    beside,
    digest,
    named,
    part_name,
    place_of,
    point,
    steps,
    sync,
    write_synced,
)


def shared_out(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Parts names among `count` ranks so that each has about as many bytes to write: the largest first, to who has least."""
    loads, found = [0] * count, [[] for _ in range(count)]  # type: tuple[list[int], list[list[str]]]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[name]
        found[rank].append(name)
    return found


def write_part(folder: Path, step: int, rank: int, size: int, tensors: dict[str, Tensor]) -> Part:
    """Writes one rank's tensors and returns when they are on disk.

    Args:
        folder: `output_dir/checkpoints`; it exists.
        step: of the checkpoint.
        rank: 0 <= rank < size.
        size: parts in all.
        tensors: on the host, of no other rank.

    Raises:
        OSError: what the disk says.
    """
    # a folder that has vanished is not made again: it may be the empty place where a file system was mounted
    beside(folder, step).mkdir(exist_ok=True)
    path = beside(folder, step) / part_name(rank, size)
    with disk_errors():
        save_file(tensors, path)
    path.chmod(beside(folder, step).stat().st_mode & 0o666)  # safetensors lets nobody else read: a colleague may go on
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return Part(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Lets what safetensors raises of the disk, in the system's words, be the system's error."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def commit(folder: Path, facts: Mapping[str, Any], parts: Sequence[Part], *, best: bool) -> None:
    """Makes a checkpoint of parts that all ranks have written; rank 0 alone calls it.

    Args:
        folder: `output_dir/checkpoints`.
        facts: what JSON can write; `step` is among them.
        parts: in rank order.
        best: it is the best so far.

    Raises:
        OSError: what the disk says, or a part that this machine does not see.
    """
    step = int(facts["step"])
    final, part = place_of(folder, step), beside(folder, step)
    for rank, each in enumerate(parts):
        path = part / part_name(rank, len(parts))
        if not path.is_file() or path.stat().st_size != each.size:
            raise OSError(f"{path} is not as rank {rank} wrote it: output_dir must be the same folder on every machine")
    files = {part_name(rank, len(parts)): each._asdict() for rank, each in enumerate(parts)}
    content = {"format": FORMAT, **facts, "parts": files}
    write_synced(part / STATE, json.dumps({**content, "digest": digest(content)}))
    sync(part)
    given_up = folder / f".step_{step}.old"  # of a run that has gone on from an earlier step
    if final.exists():
        final.rename(given_up)
    try:
        part.rename(final)
    except OSError:
        if given_up.exists():
            given_up.rename(final)
        raise
    sync(folder)
    for pointer in ("latest", *(["best"] if best else [])):
        point(folder, pointer, step)
    shutil.rmtree(given_up, ignore_errors=True)


def give_up(folder: Path, step: int) -> None:
    """Removes what was written of a checkpoint that will not be whole."""
    shutil.rmtree(beside(folder, step), ignore_errors=True)


def prune(folder: Path, step: int, keep: int) -> None:
    """Leaves the `keep` newest checkpoints up to `step` and the best; later ones are of a run that was given up."""
    with contextlib.suppress(OSError):  # what cannot be removed stays
        kept = {*[each for each in steps(folder) if each <= step][-keep:], named(folder, "best")}
        leftovers = folder.glob(".step_*")  # of a run that was killed while it wrote
        for old in [*leftovers, *(place_of(folder, each) for each in steps(folder) if each not in kept)]:
            shutil.rmtree(old, ignore_errors=True)
