"""Vectors of fewer numbers and of fewer bits, and how they are searched.

Numbers are cut as sentence-transformers' `quantize_embeddings` cuts them, so that what is measured here is what its users get.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bgetrain.distributed import gather_arrays, sum_over_ranks
from bgetrain.search import shards
from bgetrain.search.blocks import Ranked, cut, first_of
from bgetrain.search.shards import Embeddings, blocks_of, spread
from bgetrain.types import World

QUERIES = 64  # scored anew at a time: 79 MB of passages for 400 of each at width 768
Kind = Literal["fp32", "int8", "binary"]


def num_bytes(kind: Kind, width: int) -> int:
    """Of one vector."""
    return {"fp32": 4 * width, "int8": width, "binary": -(-width // 8)}[kind]


def changed(rows: Embeddings, change: Callable[[np.ndarray], np.ndarray], width: int) -> Embeddings:
    """Embeddings whose blocks are `change`d when they are read: fp32 [n, D] -> fp32 [n, width]."""
    return Embeddings(rows.total, width, rows.part, lambda number: change(rows.load(number)))


def shortened(rows: Embeddings, width: int) -> Embeddings:
    """The first `width` numbers of each row, of length 1 again (Kusupati et al. 2022, arXiv:2205.13147)."""

    def change(block: np.ndarray) -> np.ndarray:
        kept = block[:, :width]
        return np.ascontiguousarray(kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12), np.float32)

    return rows if width == rows.width else changed(rows, change, width)


def ranges_of(rows: Embeddings, world: World) -> np.ndarray:
    """fp32 [2, D], the smallest and the largest value of each number over all ranks' rows."""
    low, high = np.full((1, rows.width), np.inf, np.float32), np.full((1, rows.width), -np.inf, np.float32)
    for number in blocks_of(rows.part):
        block = rows.load(number)
        low, high = np.minimum(low, block.min(0, keepdims=True)), np.maximum(high, block.max(0, keepdims=True))
    return np.concatenate([gather_arrays(low, world).min(0, keepdims=True), gather_arrays(high, world).max(0, keepdims=True)])


def steps_of(ranges: np.ndarray) -> np.ndarray:
    steps = (ranges[1] - ranges[0]) / 255
    return np.where(steps == 0, np.float32(1), steps)


def to_int8(rows: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """int8 [n, D], where in 256 equal parts of its range each number lies; what is beyond is cut."""
    return (np.clip(np.floor((rows - ranges[0]) / steps_of(ranges)), 0, 255) - 128).astype(np.int8)


def from_int8(rows: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """fp32 [n, D], the lower ends of those parts; half a part more would add the same to each score of a query."""
    return ((rows.astype(np.float32) + 128) * steps_of(ranges) + ranges[0]).astype(np.float32)


def to_binary(rows: np.ndarray) -> np.ndarray:
    """uint8 [n, ceil(D / 8)], a bit for each number: 1 above 0 (`ubinary` of sentence-transformers)."""
    return np.packbits(rows > 0, axis=-1)


def signs(rows: np.ndarray) -> np.ndarray:
    """fp32 [n, D], 1 where a bit is set and else -1: their inner product is D - 2 x the Hamming distance."""
    return np.where(rows > 0, np.float32(1), np.float32(-1))


def rescored(found: Ranked, queries: Embeddings, passages: Embeddings, k: int, world: World) -> Ranked:
    """Scores the passages that were found anew, by other vectors, and keeps the k best of them.

    Args:
        found: with as many passages as are to be scored.
        queries: fp32 [Q, D].
        passages: fp32 [C, D], of which each rank scores its own.
        k: passages that stay.
        world: all ranks.
    """
    places = np.sort(gather_arrays(found.places, world), axis=1)  # [Q, K]; first_of wants lower places first
    scores = np.full(places.shape, -np.inf, np.float32)
    for block in cut(range(queries.total), QUERIES):
        vectors, wanted = spread(queries, block, world), places[block.start : block.stop]
        own = np.zeros(wanted.shape, np.float32)
        rows, columns = np.nonzero((wanted >= passages.part.start) & (wanted < passages.part.stop))
        own[rows, columns] = np.einsum("nd,nd->n", vectors[rows], passages.take(wanted[rows, columns]))
        scores[block.start : block.stop] = sum_over_ranks(torch.from_numpy(own), world).numpy()
    scores[places < 0] = -np.inf
    part = slice(found.queries.start, found.queries.stop)
    best = first_of(scores[part], places[part], min(k, places.shape[1]))
    return Ranked(found.queries, *best, found.recall)


def write(path: Path, rows: Embeddings, change: Callable[[np.ndarray], np.ndarray], world: World) -> None:
    """Writes the `change`d rows of all ranks as one .npy file; all ranks call it, rank 0 writes, a block at a time."""
    file = None
    for block in cut(range(rows.total), shards.BLOCK):
        made = change(spread(rows, block, world))
        if world.rank:
            continue
        if file is None:
            path.parent.mkdir(exist_ok=True)
            file = np.lib.format.open_memmap(path, "w+", made.dtype, (rows.total, made.shape[1]))
        file[block.start : block.stop] = made
    if file is not None:
        file.flush()
