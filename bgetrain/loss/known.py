"""False negatives that equal texts give away: which candidates stand for a positive of the query, or are the query itself."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bgetrain.distributed import gather_arrays
from bgetrain.types import TextKeys, World

MOST_PAIRS = 1 << 26  # 1 GB of them; our choice

# X anchors, Y candidates; an array of pairs is int64 [n, 2]: anchor on this rank, candidate; each pair once, sorted


class Known(NamedTuple):
    """Pairs of texts that are no negatives of each other; the pair of a query and its own positive is among them.

    Attributes:
        query_passage: queries of this rank x passages.
        query_query: queries of this rank x queries.
        positive_query: positives of this rank x queries.
        positive_positive: positives of this rank x positives.
    """

    query_passage: np.ndarray
    query_query: np.ndarray
    positive_query: np.ndarray
    positive_positive: np.ndarray


def known_pairs(keys: TextKeys, counts: Sequence[int], world: World | None, *, forward: bool) -> Known:
    """Finds them by joins over sorted keys: no [X, Y] comparison is made.

    A passage is no negative of a query that lists it as a positive, that stands elsewhere in the batch with it as a positive,
    or whose own text it is.

    Args:
        keys: of this rank's texts.
        counts: queries on each rank of `world`, or on this rank alone.
        world: candidates are those of all these ranks, in rank order; None: of this rank alone.
        forward: `query_passage` is all that is asked for; the others are left empty.

    Raises:
        ValueError: texts repeat so often that the pairs would not fit into memory.
    """
    query, passage, listed, owner = gathered(keys, counts, world)
    own_query, own_positive = keys.query.numpy(), keys.passage.numpy()[:: len(keys.passage) // len(keys.query)]
    # what each query lists, or any row with the same query: (query of this rank, key), each once
    _, queries = np.unique(query, return_inverse=True)
    names, texts = np.unique(listed, return_inverse=True)
    lists = unique(np.stack([queries[owner], texts], axis=1))  # (number of a query's text, number of a listed text)
    numbers = np.searchsorted(np.unique(query), own_query)
    same = joined(numbers, lists[:, 0])
    anchor, wanted = same[:, 0], names[lists[same[:, 1], 1]]
    query_passage = unique(joined(own_query, passage), through(anchor, joined(wanted, passage)))
    if forward:
        nothing = query_passage[:0]
        return Known(query_passage, nothing, nothing, nothing)
    positive = passage[:: len(passage) // len(query)]
    # (positive of this rank, any query equal to one that lists it)
    listing = joined(own_positive, names[lists[:, 1]])
    asking = joined(lists[listing[:, 1], 0], queries)
    return Known(
        query_passage,
        unique(joined(own_query, query), through(anchor, joined(wanted, query))),
        unique(joined(own_query, query), joined(own_positive, query), through(listing[:, 0], asking)),
        unique(joined(own_query, positive), joined(own_positive, positive), through(anchor, joined(wanted, positive))),
    )


def gathered(keys: TextKeys, counts: Sequence[int], world: World | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Keys of all queries, of all passages, of all listed positives, and the number of the query that lists each."""
    local = [keys.query, keys.positives.lengths, keys.passage, keys.positives.ids]
    every = np.concatenate([each.numpy() for each in local])
    if world is not None:
        every = gather_arrays(every, world)
    group_size = len(keys.passage) // len(keys.query)
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for count in counts:
        for part, size in zip(parts[:3], (count, count, count * group_size), strict=True):
            part.append(every[:size])
            every = every[size:]
        size = int(parts[1][-1].sum())
        parts[3].append(every[:size])
        every = every[size:]
    query, lengths, passage, listed = (np.concatenate(part) for part in parts)
    return query, passage, listed, np.repeat(np.arange(len(query)), lengths)


def joined(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """All pairs (i, j) with left[i] == right[j]."""
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    first, last = np.searchsorted(ordered, left, "left"), np.searchsorted(ordered, left, "right")
    counts = last - first
    if counts.sum() > MOST_PAIRS:
        raise ValueError(
            f"equal texts of the batch make {counts.sum():,} pairs that are no negatives, which is too many to keep: the data "
            f"has few distinct queries or positives; use a smaller global_batch, or loss.mask_equal=false"
        )
    rows = np.repeat(np.arange(len(left)), counts)
    places = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(first, counts)
    return np.stack([rows, order[places]], axis=1)


def through(anchor: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Pairs whose left side counts entries of `anchor`, as pairs of those anchors."""
    return np.stack([anchor[pairs[:, 0]], pairs[:, 1]], axis=1)


def unique(*pairs: np.ndarray) -> np.ndarray:
    """All pairs, each once."""
    every = np.concatenate(pairs)
    width = every[:, 1].max(initial=0) + 1
    numbers = np.unique(every[:, 0] * width + every[:, 1])  # of single numbers: ten times as fast as of rows
    return np.stack([numbers // width, numbers % width], axis=1)


def own_pairs(queries: int, group_size: int, first: int) -> Known:
    """Each query with its own positive and with itself, where texts are not compared.

    Args:
        queries: B of this rank.
        group_size: G.
        first: number of this rank's first query among the candidates.
    """
    own = np.arange(queries)
    itself = np.stack([own, first + own], axis=1)
    return Known(np.stack([own, (first + own) * group_size], axis=1), itself, itself, itself)
