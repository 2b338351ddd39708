"""The rules of mining: which passages of a query's ranking may be its negatives, and how these are drawn."""

from typing import Literal, NamedTuple

import numpy as np

from bgetrain.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Ratio

Sampling = Literal["top", "random", "weighted"]
# each dropped candidate counts for the first of these that drops it
REASONS = (
    "empty",
    "positive",
    "query",
    "equal_text",
    "max_score",
    "min_score",
    "absolute_margin",
    "relative_margin",
    "near_duplicate",
)

ROUNDING = 1e-6  # of a score of fp32 unit rows; a cross-encoder's are the same numbers either way


class Rules(NamedTuple):
    """What `rules` was given, checked."""

    first: int
    last: int
    number: int
    sampling: Sampling
    temperature: float
    max_score: float | None
    min_score: float | None
    absolute_margin: float | None
    relative_margin: float | None
    near_duplicate: float | None
    fill: Literal["none", "random"]
    keep_negatives: bool
    rescore: str | None
    rescore_batch: int
    write_scores: bool


def rules(
    *,
    first: NonNegativeInt,
    last: PositiveInt,
    number: PositiveInt,
    sampling: Literal["top", "random", "weighted"],
    temperature: PositiveFloat,
    max_score: float | None,
    min_score: float | None,
    absolute_margin: float | None,
    relative_margin: NonNegativeFloat | None,
    near_duplicate: Ratio | None,
    fill: Literal["none", "random"],
    keep_negatives: bool,
    rescore: str | None,
    rescore_batch: PositiveInt,
    write_scores: bool,
) -> Rules:
    """The keys of `mine` as one value; `bgetrain.rules` holds them against each other.

    Scores are those of the model, or of the cross-encoder where there is one. The margins compare with the lowest score
    of the query's positives, wherever these are ranked: a negative is below each of them, as in sentence-transformers 6
    (util/hard_negatives.py); NV-Retriever (Moreira et al. 2024, arXiv:2407.15831) has one positive for each query.

    Args:
        first: zero-based rank at which the window starts, counted before anything is dropped.
        last: rank at which it ends, itself not included; beyond the corpus the window ends with it.
        number: negatives drawn for each query.
        sampling: of what the rules leave: top: the best; random: all alike; weighted: by exp(score / temperature).
            Without replacement, and by a hash of (seed, query id, passage id).
        temperature: of `weighted`.
        max_score: drops what scores above it; None: nothing.
        min_score: drops what scores below it.
        absolute_margin: keeps scores up to lowest positive - margin.
        relative_margin: keeps scores up to lowest positive - margin x |lowest positive|: 0.05 is NV-Retriever's 95 %.
        near_duplicate: drops what shares at least this much of its words with a positive of the query or with a negative
            already drawn (`near_duplicates.similarity`).
        fill: whence the negatives come that the window lacks: none: nowhere; random: the corpus beyond rank `last`.
        keep_negatives: a row's own negatives are written before those drawn; False: they are left out, and counted.
        rescore: folder or hub id of a sentence-transformers CrossEncoder which scores the window and the positives.
        rescore_batch: pairs that it scores at once.
        write_scores: writes `pos_scores` and `neg_scores`; a cross-encoder's are always written.
    """
    scores = (max_score, min_score, absolute_margin, relative_margin, near_duplicate)
    drawing = (first, last, number, sampling, temperature)
    return Rules(*drawing, *scores, fill, keep_negatives, rescore, rescore_batch, write_scores)


def dropped_by_score(scores: np.ndarray, lowest: np.ndarray, given: Rules) -> dict[str, np.ndarray]:
    """Which candidates each rule on scores drops by itself.

    Args:
        scores: fp64 [Q, K].
        lowest: fp64 [Q], the lowest score of each query's positives.
        given: the rules.

    Returns:
        Reason -> bool [Q, K], for the rules that are on.
    """
    found = {}
    lowest = lowest + ROUNDING  # the window's scores are sums in another order than the positives'
    if given.max_score is not None:
        found["max_score"] = scores > given.max_score
    if given.min_score is not None:
        found["min_score"] = scores < given.min_score
    if given.absolute_margin is not None:
        found["absolute_margin"] = scores > (lowest - given.absolute_margin)[:, None]
    if given.relative_margin is not None:
        # not (1 - margin) x score, which would be above a negative score
        found["relative_margin"] = scores > (lowest - given.relative_margin * np.abs(lowest))[:, None]
    return found
