"""How far a mean over queries can be trusted, and whether two systems differ on the same queries.

Equal values are drawn as one, by how often they come up: a draw of n queries with replacement is multinomial over the
distinct values, n flipped signs are binomial over the distinct sizes. That is exact, and figures of queries have few
values: with one relevant passage to a query nDCG@10 has eleven. More than LEVELS of them are first rounded to as many, a
change to their mean of some span / LEVELS / sqrt(12 n), less than a hundredth of its standard error. Time and memory are
thus bounded for any number of queries; `scipy.stats.permutation_test`, which shuffles each pair by itself, would need most
of an hour for 100,000.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 9_999  # so that the least p is 1 / 10,000; Efron and Tibshirani 1993, 13.3, want a thousand for percentiles
TAIL = 2.5  # per cent left out at each end of an interval
LEVELS = 512  # distinct values drawn from
BATCH = 2**20  # numbers drawn at a time, 8 bytes each


class Paired(NamedTuple):
    """Two systems on the same queries.

    Attributes:
        difference: mean of ours minus theirs.
        low: of the 95 % interval of the difference.
        high: the same.
        p: two-sided; how often a difference as large comes up where it is chance which system got which figure.
    """

    difference: float
    low: float
    high: float
    p: float


def interval(values: Sequence[float] | np.ndarray, *, seed: int) -> tuple[float, float]:
    """Computes the 95 % percentile bootstrap interval of a mean over queries.

    Args:
        values: a figure of each query, n >= 1 of them, in the figure's unit.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Its ends, low <= high. Of few queries (below about 20) it is too narrow, as percentile intervals are.

    Raises:
        ValueError: there are no values, or some are not finite.
    """
    numbers = checked(values)
    distinct, counts = tallied(numbers)
    shares = counts / len(numbers)
    means = drawn(lambda random, size: random.multinomial(len(numbers), shares, size) @ distinct, len(distinct), seed)
    low, high = np.percentile(means / len(numbers), [TAIL, 100 - TAIL]) + numbers.mean() - shares @ distinct
    return float(low), float(high)


def paired(ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, *, seed: int) -> Paired:
    """Tests whether two systems differ on the same queries, by Fisher's randomisation test.

    If the systems were alike, each query's two figures could as well have been swapped: p is the share of draws, each
    with the sign of every query's difference flipped by a coin, in which the mean is at least as far from 0 as it is
    here; the mean as it is counts as one draw, which keeps p above 0. Smucker, Allan and Carterette 2007
    (doi:10.1145/1321440.1321528) recommend this test for retrieval over the sign and Wilcoxon tests; it assumes no
    distribution, and no sampling of queries. The interval is a paired bootstrap (Koehn 2004, aclanthology.org/W04-3250):
    each draw takes the same queries of both systems.

    Args:
        ours: a figure of each query, n >= 1.
        theirs: the same figure of the same queries in the same order.
        seed: of the draws.

    Returns:
        The difference, its 95 % interval, and p from 1e-4 to 1; systems with equal figures have p = 1.

    Raises:
        ValueError: the lengths differ, there are no values, or some are not finite.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} figures of ours cannot be paired with {len(theirs)} of theirs")
    differences = checked(ours) - checked(theirs)
    sizes, counts = tallied(np.abs(differences[differences != 0]))  # a sign does nothing to 0

    def flipped(random: np.random.Generator, size: int) -> np.ndarray:
        return (2 * random.binomial(counts, 0.5, (size, len(counts))) - counts) @ sizes

    sums = np.abs(drawn(flipped, len(sizes), seed))
    # sums of the same numbers in another order differ in the last digits
    reached = int((sums >= abs(differences.sum()) - 1e-9 * sizes.sum()).sum())
    low, high = interval(differences, seed=seed)
    return Paired(float(differences.mean()), low, high, (reached + 1) / (DRAWS + 1))


def checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers)).sum())
        raise ValueError(f"figures of at least one query are needed, all finite; of {numbers.size:,} here {bad:,} are not")
    return numbers


def tallied(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, rising, and how often each comes up; beyond LEVELS of them rounded."""
    distinct, counts = np.unique(numbers, return_counts=True)
    if len(distinct) > LEVELS:
        step = (distinct[-1] - distinct[0]) / (LEVELS - 1)
        distinct, counts = np.unique(distinct[0] + step * np.round((numbers - distinct[0]) / step), return_counts=True)
    return distinct, counts


def drawn(draw: Callable[[np.random.Generator, int], np.ndarray], width: int, seed: int) -> np.ndarray:
    """fp64 [DRAWS], made in batches that bound memory; `width` numbers are drawn for each."""
    random, most = np.random.default_rng(seed), max(BATCH // max(width, 1), 1)
    return np.concatenate([draw(random, min(most, DRAWS - first)) for first in range(0, DRAWS, most)])
