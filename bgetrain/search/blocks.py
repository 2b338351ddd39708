"""What each rank finds for a block of queries, merged where the queries belong."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from bgetrain.distributed import gather_to, share, sum_over_ranks
from bgetrain.search.shards import Embeddings, spread
from bgetrain.types import World

Find = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # fp32 [n, D] -> scores and places [n, k] in this rank's part


class Ranked(NamedTuple):
    """The best passages for this rank's share of the queries.

    Attributes:
        queries: numbers of the queries; those of all ranks, in rank order, are all queries in order.
        scores: fp32 [n, K], falling along each row; -inf where `places` is -1.
        places: int64 [n, K], positions in the corpus, rising among equal scores; -1 where an approximate search found fewer.
        recall: of the passages that exact search finds, the share found, 0 to 1, mean over a sample of queries; None: the
            search was exact.
    """

    queries: range
    scores: np.ndarray
    places: np.ndarray
    recall: float | None


def checked(queries: Embeddings, passages: Embeddings, k: int) -> int:
    """k, cut to the size of the corpus.

    Raises:
        ValueError: the corpus is empty, the widths differ, or k is below 1.
    """
    if queries.width != passages.width:
        raise ValueError(f"queries of width {queries.width} and passages of width {passages.width}: they must be of one width")
    if not passages.total:
        raise ValueError("corpus has no passages: there is nothing to search")
    if k < 1:
        raise ValueError(f"k={k}: must be a whole number above 0")
    return min(k, passages.total)


def by_blocks(find: Find, queries: Embeddings, k: int, query_block: int, world: World) -> Ranked:
    """Runs `find` on every rank for each block of queries, and merges what the ranks found on the one that has the query."""
    parts = [share(queries.total, world._replace(rank=rank)) for rank in range(world.size)]
    own = parts[world.rank]
    scores, places = np.empty((len(own), k), np.float32), np.empty((len(own), k), np.int64)
    piece = max(1, query_block // world.size)  # what one rank receives at a time is then no more than a block's
    for block in cut(range(queries.total), query_block):
        found = find(spread(queries, block, world))
        for rank, part in enumerate(parts):
            mine = range(max(part.start, block.start), min(part.stop, block.stop))
            for rows in cut(mine, piece):
                inside = slice(rows.start - block.start, rows.stop - block.start)
                all_scores, all_places = (gather_to(each[inside], rank, world) for each in found)
                if all_scores is not None and all_places is not None:
                    at = slice(rows.start - own.start, rows.stop - own.start)
                    # in rank order, which is that of places: equal scores stay in it
                    scores[at], places[at] = first_of(np.concatenate(all_scores, 1), np.concatenate(all_places, 1), k)
    return Ranked(own, scores, places, None)


def first_of(scores: np.ndarray, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row, falling; of equal ones those that come first, which must be of lower places."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(places, order, axis=1)


def cut(rows: range, size: int) -> Iterator[range]:
    for start in range(rows.start, rows.stop, size):
        yield range(start, min(start + size, rows.stop))


def scores_of(
    queries: Embeddings, passages: Embeddings, places: Sequence[np.ndarray], query_block: int, world: World
) -> list[np.ndarray]:
    """Scores of given passages, such as each query's positives, which need not be among the best.

    Args:
        queries: fp32 [Q, D].
        passages: fp32 [C, D].
        places: of each of the Q queries int64 [p], positions in the corpus; the same on every rank.
        query_block: queries that all ranks work on at a time.
        world: all ranks.

    Returns:
        Of each query of this rank's share, as `search` shares them out, fp32 [p].
    """
    own = share(queries.total, world)
    found: list[np.ndarray] = []
    for block in cut(range(queries.total), query_block):
        vectors = spread(queries, block, world)
        sizes = [len(places[number]) for number in block]
        flat_places = np.concatenate([np.asarray(places[number], np.int64) for number in block])
        rows = np.repeat(np.arange(len(block)), sizes)
        here = np.flatnonzero((flat_places >= passages.part.start) & (flat_places < passages.part.stop))
        scores = np.zeros(len(rows), np.float32)
        for few in cut(range(len(here)), query_block):
            at = here[few.start : few.stop]
            scores[at] = np.einsum("nd,nd->n", vectors[rows[at]], passages.take(flat_places[at]))
        summed = sum_over_ranks(torch.from_numpy(scores), world).numpy()  # one rank has each; the others' zeros change nothing
        each = np.split(summed, np.cumsum(sizes)[:-1])
        found += [each[number - block.start] for number in block if number in own]
    return found
