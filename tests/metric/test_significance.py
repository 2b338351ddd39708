"""Intervals and tests over queries against enumeration, plain resampling and simulated data."""

import tracemalloc
from itertools import product

import numpy as np
import pytest

from bgetrain.metric.significance import DRAWS, interval, paired


def plain_interval(values: np.ndarray, draws: int) -> np.ndarray:
    """The percentile bootstrap as it is described: draw n places with replacement, take the mean."""
    random = np.random.default_rng(5)
    return np.percentile([random.choice(values, len(values)).mean() for _ in range(draws)], [2.5, 97.5])


def exact_p(differences: np.ndarray) -> float:
    """The randomisation test over all 2 ** n signs."""
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(differences))]
    return float(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12))


@pytest.mark.parametrize("values", ["many", "few", "beyond the levels"])
def test_interval_equals_plain_resampling(values):
    random = np.random.default_rng(1)
    drawn = {
        "many": random.random(200),
        "few": 1 / random.integers(1, 11, 200),
        "beyond the levels": random.exponential(size=3000),
    }[values]
    width = 3.92 * drawn.std() / len(drawn) ** 0.5
    # the ends of 4,000 and 9,999 draws scatter by 1 % of the width each
    np.testing.assert_allclose(interval(drawn, seed=0), plain_interval(drawn, 4000), rtol=0, atol=0.05 * width)


def test_intervals_hold_the_true_mean_of_95_in_100_samples():
    random = np.random.default_rng(2)
    ranks = 1 / np.arange(1, 6)
    samples = [random.choice(ranks, 100) for _ in range(200)]
    held = [low <= ranks.mean() <= high for low, high in (interval(each, seed=0) for each in samples)]
    assert 0.90 < np.mean(held) < 0.99  # 3 standard errors of 200 samples


@pytest.mark.parametrize("seed", range(4))
def test_p_equals_that_of_all_signs(seed):
    random = np.random.default_rng(seed)
    ours, theirs = random.integers(0, 5, (2, 11)) / 4 + [[0.2 * seed], [0]]
    exact = exact_p(ours - theirs)
    found = paired(ours, theirs, seed=0)
    assert found.p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / DRAWS) ** 0.5 + 1 / DRAWS)
    assert found.difference == pytest.approx(np.mean(ours - theirs), abs=1e-12)
    assert found[1:3] == interval(ours - theirs, seed=0)


def test_p_is_below_5_per_cent_in_5_of_100_equal_systems():
    random = np.random.default_rng(3)
    small = [paired(*random.integers(0, 5, (2, 60)), seed=0).p < 0.05 for _ in range(200)]
    assert 0.01 < np.mean(small) < 0.1  # 3 standard errors of 200 samples


def test_identical_systems_have_p_of_1_and_one_that_is_always_better_the_least():
    values = np.random.default_rng(4).random(60)
    assert paired(values, values, seed=0) == (0, 0, 0, 1)
    found = paired(values + 0.1, values, seed=0)
    assert found.p == 1 / (DRAWS + 1)
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1), abs=1e-9)


def test_swapped_systems_swap_the_sign():
    ours, theirs = np.random.default_rng(6).random((2, 50))
    one, other = paired(ours, theirs, seed=0), paired(theirs, ours, seed=0)
    assert (one.difference, one.p) == (pytest.approx(-other.difference), other.p)


def test_same_seed_same_figures():
    ours, theirs = np.random.default_rng(7).random((2, 50))
    assert paired(ours, theirs, seed=3) == paired(ours, theirs, seed=3)
    assert interval(ours, seed=3) == interval(list(ours), seed=3) != interval(ours, seed=4)


def test_100_000_queries_take_bounded_memory():
    ours, theirs = np.random.default_rng(8).random((2, 100_000))
    tracemalloc.start()
    found = paired(ours, theirs, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # all signs at once would be 1e9 numbers
    error = np.std(ours - theirs) / 100_000**0.5
    assert (found.high - found.low) / (3.92 * error) == pytest.approx(1, abs=0.05)  # the central limit


def test_one_query_and_equal_values_have_an_interval_of_no_width():
    assert interval([0.25], seed=0) == interval([0.25, 0.25], seed=0) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ([1.0], [1.0, 0.0], "1 figures of ours cannot be paired with 2 of theirs"),
        ([], [], "of 0 here 0 are not"),
        ([1.0, float("nan")], [1.0, 0.0], "of 2 here 1 are not"),
    ],
)
def test_what_cannot_be_tested_is_refused(ours, theirs, words):
    with pytest.raises(ValueError, match=words):
        paired(ours, theirs, seed=0)
