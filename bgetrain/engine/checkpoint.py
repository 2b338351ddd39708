"""Checkpoints on disk: `checkpoints/step_N/`, one part of each rank and `state.json`, which has a checksum of all.

A checkpoint is written beside, synced and renamed; then `latest` names it, and `best` where it is the best so far. What is
damaged is known by its checksum, and the one before is taken.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
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


def candidates(folder: Path) -> list[int]:
    """Steps to go on from, the first choice first: what `latest` names and what is before, or all where it names nothing."""
    pointed, there = named(folder, "latest"), steps(folder)
    return [step for step in reversed(there) if step <= pointed or pointed not in there]


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
    bring_back(folder)
    there = candidates(folder)
    if not there and not (folder / "latest").exists():
        return 0
    faults = []
    if named(folder, "latest") not in there:
        faults.append(f"{folder / 'latest'} names no checkpoint that is there")
        warn(faults[0])
    for step in there:
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


def bring_back(folder: Path) -> None:
    """Undoes a replacement that a kill has cut off between the old checkpoint's leaving and the new one's coming."""
    for old in folder.glob(".step_*.old"):
        place = folder / old.name[1:].removesuffix(".old")
        if not place.exists():
            old.rename(place)


def point_best(folder: Path, step: int) -> None:
    """Lets `best` name what the run that goes on from `step` knows as its best; rank 0 calls it.

    A kill may have come between the two pointers.
    """
    known = progress(folder, step)
    best = known[0].get("best", {}).get("step", 0) if known else 0
    if best in steps(folder) and best != named(folder, "best"):
        point(folder, "best", best)


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
    tensors = tensors_of(place, facts)
    mine, same = f"{RANDOM}{rank}/", len(facts["parts"]) == size
    random = {name.removeprefix(mine): each for name, each in tensors.items() if same and name.startswith(mine)}
    held = {name: each for name, each in tensors.items() if not name.startswith(RANDOM)}
    return TrainState(step, held, facts["counters"], facts["scaler"], random)


def best_step(folder: Path, warn: Callable[[str], None]) -> int:
    """The step of the best checkpoint, 0 where there is none that is whole; rank 0 calls it."""
    step = named(folder, "best")
    if step:
        try:
            check(place_of(folder, step))
        except DamageError as error:
            warn(f"damaged checkpoint, the best one: {error}; the last weights are kept instead")
            return 0
    return step


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    """The parameters of a checkpoint that is whole, fp32, through memory maps."""
    place = place_of(folder, step)
    return {name: each for name, each in tensors_of(place, read(place)).items() if MOMENT not in name}


def tensors_of(place: Path, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """What all parts of a checkpoint hold."""
    return {name: each for part in facts["parts"] for name, each in load_file(place / part).items()}
