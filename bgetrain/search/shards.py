"""Embeddings in blocks that ranks share out, as files that later runs find again.

A block is `BLOCK` texts in a row, whatever the number of ranks; a rank has whole blocks, and reads no other's.
"""

import itertools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bgetrain.distributed import from_rank, share
from bgetrain.types import World

BLOCK = 4096  # small, so that few blocks still share out evenly: 10 million passages of width 768 are 2,442 files of 13 MB
DIGEST = 16  # bytes of the checksum at the end of a file


class Embeddings(NamedTuple):
    """N rows of width D, each on one rank.

    Attributes:
        total: N, on all ranks.
        width: D.
        part: the rows that this rank has.
        load: number of one of its blocks -> fp32 [BLOCK or, the last one, fewer, D], mapped where it is a file.
    """

    total: int
    width: int
    part: range
    load: Callable[[int], np.ndarray]

    def take(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """fp32 [n, D], the rows at `places`, which this rank must have."""
        at = np.asarray(places, np.int64)
        found = np.empty((len(at), self.width), np.float32)
        for number in np.unique(at // BLOCK).tolist():
            inside = at // BLOCK == number
            found[inside] = self.load(number)[at[inside] - number * BLOCK]
        return found


def part_of(total: int, world: World) -> range:
    """The rows that a rank has: whole blocks."""
    blocks = share(-(-total // BLOCK), world)
    return range(min(blocks.start * BLOCK, total), min(blocks.stop * BLOCK, total))


def blocks_of(part: range) -> range:
    """The numbers of the blocks that a rank's part is made of."""
    return range(part.start // BLOCK, -(-part.stop // BLOCK))


def held(array: np.ndarray, world: World) -> Embeddings:
    """Embeddings that every rank has whole, in memory or mapped.

    Args:
        array: fp32 [N, D].
        world: all ranks.
    """

    def load(number: int) -> np.ndarray:
        return np.ascontiguousarray(array[number * BLOCK : (number + 1) * BLOCK], np.float32)

    return Embeddings(len(array), array.shape[1], part_of(len(array), world), load)


def settled(rows: np.ndarray, total: int, world: World) -> Embeddings:
    """Embeddings in memory, from even shares of them: a rank sends what lies in blocks of another.

    Texts that are embedded again and again should take every rank equally long, and few of them make few blocks; the shares
    differ from the ranks' blocks by about one at each end, whatever the number of texts.

    Args:
        rows: fp32 [n, D], those of `distributed.share(total)`.
        total: N, on all ranks.
        world: all ranks.

    Returns:
        4 x D bytes for each row of this rank.
    """
    every = [world._replace(rank=rank) for rank in range(world.size)]
    own, part = share(total, world), part_of(total, world)
    kept = np.empty((len(part), rows.shape[1]), np.float32)
    for holder, owner in itertools.product(every, every):
        from_, to = share(total, holder), part_of(total, owner)
        piece = range(max(from_.start, to.start), min(from_.stop, to.stop))
        if not len(piece):
            continue
        sent = np.empty((len(piece), rows.shape[1]), np.float32)
        if holder == world:
            sent = rows[piece.start - own.start : piece.stop - own.start]
        if holder != owner:
            sent = from_rank(sent, holder.rank, world)
        if owner == world:
            kept[piece.start - part.start : piece.stop - part.start] = sent

    def load(number: int) -> np.ndarray:
        begin = number * BLOCK - part.start
        return kept[begin : begin + BLOCK]

    return Embeddings(total, rows.shape[1], part, load)


def spread(embeddings: Embeddings, wanted: range, world: World) -> np.ndarray:
    """fp32 [n, D], rows of several ranks on every rank; each sends what it has."""
    pieces = []
    for owner, piece in owners(embeddings.total, wanted, world):
        own = embeddings.take(piece) if owner == world.rank else np.empty((len(piece), embeddings.width), np.float32)
        pieces.append(from_rank(own, owner, world))
    return np.concatenate(pieces) if pieces else np.empty((0, embeddings.width), np.float32)


def owners(total: int, wanted: range, world: World) -> Iterator[tuple[int, range]]:
    """Which rank has which of the rows `wanted`, in their order."""
    for rank in range(world.size):
        part = part_of(total, world._replace(rank=rank))
        piece = range(max(part.start, wanted.start), min(part.stop, wanted.stop))
        if len(piece):
            yield rank, piece


def save(path: Path, rows: np.ndarray) -> None:
    """Writes a block and its checksum beside `path` and renames it, so that a file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    rows = np.ascontiguousarray(rows)
    with beside.open("wb") as file:
        np.save(file, rows)
        file.write(checksum(rows))
    beside.replace(path)


def checksum(rows: np.ndarray) -> bytes:
    return blake2b(rows.data, digest_size=DIGEST).digest()


def is_whole(path: Path, shape: tuple[int, int]) -> bool:
    """Whether `path` holds a block as `save` has written it; a file that was cut or changed does not."""
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    if rows.shape != shape:
        return False
    with path.open("rb") as file:
        file.seek(-DIGEST, os.SEEK_END)
        end = file.read()
    return path.stat().st_size == rows.offset + rows.nbytes + DIGEST and end == checksum(rows)


def mapped(path: Path) -> np.ndarray:
    """fp32 [n, D] of a file of `save`; the pages go when the array does."""
    # "c" and not "r": torch warns of arrays that cannot be written, and nobody writes
    return np.load(path, mmap_mode="c").astype(np.float32, copy=False)
