"""What each rank finds for a block of queries, merged where the queries belong."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bgetrain.distributed import gather_to, share
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
