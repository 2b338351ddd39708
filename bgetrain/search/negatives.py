"""Hard negatives from a window of ranks: below the positives, above what is easy (BGE mines ranks 10 to 210)."""

import heapq
import json
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b

import numpy as np

from bgetrain.types import NonNegativeInt, PositiveInt


def draw(
    ranked: np.ndarray,
    *,
    query_ids: Sequence[str],
    queries: Sequence[str],
    positives: Sequence[Sequence[str]],
    passage_ids: Sequence[str],
    passages: Sequence[str],
    first: NonNegativeInt,
    last: PositiveInt,
    number: PositiveInt,
    seed: int,
) -> list[list[int]]:
    """Draws negatives for each query from its ranks first to last.

    Dropped from the window are empty texts, those equal to a positive of the query or to the query itself, and all but
    one of equal texts; surrounding white space does not count. What is left is drawn from by a hash of (seed, query id,
    passage id), so that a query's draw is the same on any number of ranks, among any other queries, and in whatever order
    equal scores put the passages of its window.

    Args:
        ranked: int64 [Q, K], positions in `passages`, best first.
        query_ids: Q names.
        queries: Q texts.
        positives: of each query, its relevant texts.
        passage_ids: C names.
        passages: C texts.
        first: zero-based rank at which the window starts, counted before anything is dropped.
        last: rank at which it ends, itself not included; beyond K the window ends at K.
        number: negatives per query.
        seed: another seed gives another draw from the same windows.

    Returns:
        Of each query, `number` positions in `passages`, or all that were left where these are fewer.

    Raises:
        ValueError: first >= last, or the lengths do not agree.
    """
    if first >= last:
        raise ValueError(f"first={first} must be below last={last}: the window takes ranks first to last - 1")
    if not len(ranked) == len(query_ids) == len(queries) == len(positives):
        lengths = f"{len(query_ids)} query_ids, {len(queries)} queries and {len(positives)} positives"
        raise ValueError(f"ranked has {len(ranked)} rows for {lengths}: there must be as many of each")
    if len(passage_ids) != len(passages):
        raise ValueError(f"{len(passage_ids)} passage_ids for {len(passages)} passages: there must be as many")
    drawn = []
    for row, query_id in enumerate(query_ids):
        excluded = {text.strip() for text in (*positives[row], queries[row], "")}
        kept = _distinct(ranked[row, first:last].tolist(), excluded, passage_ids, passages)
        drawn.append(_sample(kept, passage_ids, number, prefix=json.dumps([seed, query_id])))
    return drawn


def _distinct(window: Iterable[int], excluded: Collection[str], passage_ids: Sequence[str], passages: Sequence[str]) -> list[int]:
    """Drops positions whose text is excluded; of equal texts the smallest passage id stays, whatever their order."""
    kept: dict[str, int] = {}
    for position in window:
        text = passages[position].strip()
        if text in excluded:
            continue
        if text not in kept or passage_ids[position] < passage_ids[kept[text]]:
            kept[text] = position
    return list(kept.values())


def _sample(positions: Iterable[int], passage_ids: Sequence[str], number: int, prefix: str) -> list[int]:
    """Takes the `number` positions whose passage ids have the smallest hashes after `prefix`."""
    start = blake2b(prefix.encode(), digest_size=8)

    def key(position: int) -> tuple[bytes, str]:
        state = start.copy()
        state.update(passage_ids[position].encode())
        return state.digest(), passage_ids[position]

    return heapq.nsmallest(number, positions, key=key)
