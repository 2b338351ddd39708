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

Figures = Sequence[float] | np.ndarray  # of queries


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


def interval(values: Figures, *, seed: int) -> tuple[float, float]:
    """Computes the 95 % percentile bootstrap interval of a mean over queries.

    Args:
        values: a figure of each query, n >= 1 of them, in the figure's unit.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Its ends, low <= high. Of few queries (below about 20) it is too narrow, as percentile intervals are.

    Raises:
        ValueError: there are no values, or some are not finite.
    """
    return interval_of_sets([values], [1.0], seed=seed)


def interval_of_sets(values: Sequence[Figures], weights: Sequence[float], *, seed: int) -> tuple[float, float]:
    """As `interval`, of a weighted sum of the means of several sets, each of whose queries are drawn by themselves."""
    random, means = np.random.default_rng(seed), np.zeros(DRAWS)
    for each, weight in zip(values, weights, strict=True):
        means += weight * resampled(checked(each), random)
    low, high = np.percentile(means, [TAIL, 100 - TAIL])
    return float(low), float(high)


def paired(ours: Figures, theirs: Figures, *, seed: int) -> Paired:
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
    return paired_of_sets([ours], [theirs], [1.0], seed=seed)


def paired_of_sets(ours: Sequence[Figures], theirs: Sequence[Figures], weights: Sequence[float], *, seed: int) -> Paired:
    """As `paired`, of a weighted sum of the means of several sets."""
    random, sums, differences, size = np.random.default_rng(seed), np.zeros(DRAWS), [], 0.0
    for one, other, weight in zip(ours, theirs, weights, strict=True):
        if len(one) != len(other):
            raise ValueError(f"{len(one)} figures of ours cannot be paired with {len(other)} of theirs")
        differences.append(checked(one) - checked(other))
        sums += weight * flipped(differences[-1], random)
        size += weight * float(np.abs(differences[-1]).mean())
    difference = sum(weight * float(each.mean()) for each, weight in zip(differences, weights, strict=True))
    # means of the same numbers in another order differ in the last digits
    reached = int((np.abs(sums) >= abs(difference) - 1e-9 * size).sum())
    return Paired(difference, *interval_of_sets(differences, weights, seed=seed), (reached + 1) / (DRAWS + 1))


def resampled(numbers: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """fp64 [DRAWS], each the mean of as many numbers drawn with replacement."""
    distinct, counts = tallied(numbers)
    shares = counts / len(numbers)
    sums = drawn(lambda size: random.multinomial(len(numbers), shares, size) @ distinct, len(distinct))
    return sums / len(numbers) + numbers.mean() - shares @ distinct  # what rounding moved is moved back


def flipped(differences: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """fp64 [DRAWS], each the mean of the differences with signs by a coin."""
    sizes, counts = tallied(np.abs(differences[differences != 0]))  # a sign does nothing to 0
    sums = drawn(lambda size: (2 * random.binomial(counts, 0.5, (size, len(counts))) - counts) @ sizes, len(sizes))
    return sums / len(differences)


def checked(values: Figures) -> np.ndarray:
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


def drawn(draw: Callable[[int], np.ndarray], width: int) -> np.ndarray:
    """fp64 [DRAWS], made in batches that bound memory; `width` numbers are drawn for each."""
    most = max(BATCH // max(width, 1), 1)
    return np.concatenate([draw(min(most, DRAWS - first)) for first in range(0, DRAWS, most)])
