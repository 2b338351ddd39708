"""Checkpoints on disk: `checkpoints/step_N/`, one part of each rank and `state.json`, which has a checksum of all.

A checkpoint is written beside, synced and renamed; then `latest` names it, and `best` where it is the best so far. What is
damaged is known by its checksum, and the one before is taken.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from bgetrain.types import TrainState

FORMAT = 1  # of the files
STATE = "state.json"
MOMENT = "/"  # between the name of a parameter and that of a state which the optimizer keeps of it
RANDOM = "random/"  # before a rank and what it draws from


class Part(NamedTuple):
    """A file of a checkpoint.

    Attributes:
        size: bytes.
        digest: SHA-256, hexadecimal.
    """

    size: int
    digest: str


class DamageError(ValueError):
    """A checkpoint that is not what was written."""


def shared_out(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Parts names among `count` ranks so that each has about as many bytes to write: the largest first, to who has least."""
    loads, found = [0] * count, [[] for _ in range(count)]  # type: tuple[list[int], list[list[str]]]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[name]
        found[rank].append(name)
    return found


def whole_name(name: str, key: str) -> str:
    """How a checkpoint names a parameter, or a state that the optimizer keeps of it."""
    return f"{name}{MOMENT}{key}" if key else name


def place_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step}"


def beside(folder: Path, step: int) -> Path:
    """Where a checkpoint lies while it is written."""
    return folder / f".step_{step}.part"


def part_name(rank: int, size: int) -> str:
    return f"part_{rank}_of_{size}.safetensors"


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
    try:
        save_file(tensors, path)
    except Exception as error:  # safetensors has an error of its own, in whose words the system's are
        if isinstance(error, OSError) or type(error).__module__.startswith("safetensors"):
            raise OSError(str(error)) from error
        raise
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return Part(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def commit(folder: Path, facts: Mapping[str, Any], parts: Sequence[Part], *, keep: int, best: bool) -> None:
    """Makes a checkpoint of parts that all ranks have written; rank 0 alone calls it.

    Args:
        folder: `output_dir/checkpoints`.
        facts: what JSON can write; `step` is among them.
        parts: in rank order.
        keep: checkpoints to leave, this one and the newest before it; the best stays besides.
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
    part.rename(final)
    sync(folder)
    for pointer in ("latest", *(["best"] if best else [])):
        point(folder, pointer, step)
    shutil.rmtree(given_up, ignore_errors=True)
    prune(folder, step, keep)


def give_up(folder: Path, step: int) -> None:
    """Removes what was written of a checkpoint that will not be whole."""
    shutil.rmtree(beside(folder, step), ignore_errors=True)


def progress(folder: Path, step: int) -> list[dict[str, Any]]:
    """What `Saver.save` was given on each rank then; none for step 0."""
    return list(read(place_of(folder, step))["progress"]) if step else []


def point(folder: Path, name: str, step: int) -> None:
    """Lets `latest` or `best` name a checkpoint."""
    pointer = folder / f".{name}.{os.getpid()}"
    write_synced(pointer, place_of(folder, step).name)
    pointer.replace(folder / name)
    sync(folder)


def write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Lets the names in a folder survive a loss of power, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of facts, without that of their own."""
    plain = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def prune(folder: Path, step: int, keep: int) -> None:
    """Leaves the `keep` newest checkpoints up to `step` and the best; later ones are of a run that was given up."""
    kept = {*[each for each in steps(folder) if each <= step][-keep:], named(folder, "best")}
    for old in set(steps(folder)) - kept:
        shutil.rmtree(place_of(folder, old), ignore_errors=True)
    for leftover in folder.glob(".step_*"):  # of a run that was killed while it wrote
        shutil.rmtree(leftover, ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return sorted(int(path.name[5:]) for path in folder.glob("step_*") if path.name[5:].isdecimal())


def named(folder: Path, pointer: str) -> int:
    """The step that `latest` or `best` names, 0 where there is none."""
    try:
        name = (folder / pointer).read_text("utf8", "replace").strip()
    except OSError:
        return 0
    number = name.removeprefix("step_")
    return int(number) if name.startswith("step_") and number.isascii() and number.isdecimal() else 0


def read(place: Path) -> dict[str, Any]:
    """The facts of a checkpoint, as `commit` was given them, and `parts`.

    Raises:
        DamageError: they are not what was written.
    """
    try:
        content = json.loads((place / STATE).read_text("utf8"))
    except FileNotFoundError as error:
        raise DamageError(f"{place} has no {STATE}") from error
    except (OSError, ValueError) as error:
        raise DamageError(f"{place / STATE} cannot be read") from error
    if not isinstance(content, dict) or content.get("digest") != digest(content):
        raise DamageError(f"{place / STATE} does not have the checksum that it was written with")
    if content["format"] != FORMAT:
        raise DamageError(f"{place} has format {content['format']}, this version of bgetrain reads {FORMAT}")
    if content["step"] != int(place.name.removeprefix("step_")):
        raise DamageError(f"{place} is of step {content['step']}")
    return content


def check(place: Path) -> None:
    """Holds every file of a checkpoint against its checksum.

    Raises:
        DamageError: one that is missing or differs.
    """
    for name, part in read(place)["parts"].items():
        path = place / name
        try:
            size = path.stat().st_size
            if size != part["size"]:
                raise DamageError(f"{path} has {size:,} bytes, {part['size']:,} were written")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part["digest"]:
                    raise DamageError(f"{path} does not have the checksum that it was written with")
        except OSError as error:
            raise DamageError(f"{path}: {error.strerror}") from error


def newest_whole(folder: Path, warn: Callable[[str], None]) -> int:
    """The step to go on from: that of the newest checkpoint that is whole, which `latest` then names; rank 0 calls it.

    Args:
        folder: `output_dir/checkpoints`.
        warn: told of each that is not.

    Returns:
        0 where no checkpoint was ever made.

    Raises:
        ValueError: there are checkpoints, and none of them is whole.
    """
    pointed, there = named(folder, "latest"), steps(folder)
    if not there and not (folder / "latest").exists():
        return 0
    faults = []
    if pointed not in there:
        faults.append(f"{folder / 'latest'} names no checkpoint that is there")
        warn(faults[0])
    for step in reversed([each for each in there if each <= pointed] if pointed in there else there):
        try:
            check(place_of(folder, step))
        except DamageError as error:
            faults.append(str(error))
            warn(f"damaged checkpoint: {error}")
            continue
        if faults:
            warn(f"going on from step {step}, the newest checkpoint that is whole")
            point(folder, "latest", step)
        return step
    raise ValueError(f"{folder}: no checkpoint is whole ({faults[-1]}): put one back, or start anew with resume=never")


def load(folder: Path, step: int, rank: int, size: int) -> TrainState:
    """Reads a checkpoint that is whole; every rank reads for itself, through memory maps.

    Args:
        folder: `output_dir/checkpoints`.
        step: that has one.
        rank: this one.
        size: ranks now; states of random numbers are taken over where they are as many as then.
    """
    place = place_of(folder, step)
    facts = read(place)
    tensors: dict[str, Tensor] = {}
    for name in facts["parts"]:
        tensors |= load_file(place / name)
    mine, same = f"{RANDOM}{rank}/", len(facts["parts"]) == size
    random = {name.removeprefix(mine): each for name, each in tensors.items() if same and name.startswith(mine)}
    held = {name: each for name, each in tensors.items() if not name.startswith(RANDOM)}
    return TrainState(step, held, facts["counters"], facts["scaler"], random)


def best_weights(folder: Path) -> dict[str, Tensor]:
    """The parameters of the best checkpoint, whole, fp32.

    Raises:
        DamageError: it is not what was written.
    """
    place = place_of(folder, named(folder, "best"))
    check(place)
    tensors: dict[str, Tensor] = {}
    for name in read(place)["parts"]:
        tensors |= load_file(place / name)
    return {name: each for name, each in tensors.items() if MOMENT not in name}
