"""The order of the data: permutations, world sizes, and that no release may change it unseen."""

import numpy as np
import pytest

from bgetrain.data.plan import Plan, hashed


def splitmix(keys: list[int]) -> int:
    """SplitMix64's step and mix in whole numbers of Python, once for each key."""
    wrap, state = 2**64, 0
    for key in keys:
        state = (state + key + 0x9E3779B97F4A7C15) % wrap
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % wrap
        state = (state ^ state >> 27) * 0x94D049BB133111EB % wrap
        state ^= state >> 31
    return state


def epoch_rows(plan: Plan, steps: range) -> list[int]:
    return [row for step in steps for row in plan.draw(step, range(plan.global_batch)).rows.tolist()]


def test_hashed_is_splitmix64_and_arrays_broadcast():
    assert int(hashed(0)) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from seed 0, as published with its code
    assert int(hashed(1, 2, 2**62)) == splitmix([1, 2, 2**62])
    grid = hashed(7, np.arange(3)[:, None], np.arange(4))
    assert grid.dtype == np.uint64
    assert grid.tolist() == [[splitmix([7, row, column]) for column in range(4)] for row in range(3)]


def test_hashes_of_neighbours_fill_the_range_evenly():
    counts = np.bincount((hashed(1, np.arange(16_000)) % np.uint64(16)).astype(int))
    assert np.abs(counts - 1000).max() < 5 * 31  # five standard deviations


def test_the_order_is_what_it_has_always_been():
    draw = Plan(10, 4, 42).draw(3, range(4))  # the end of the first epoch and the start of the second
    assert (draw.rows.tolist(), draw.epochs.tolist()) == ([1, 8, 0, 7], [0, 0, 1, 1])


@pytest.mark.parametrize(("num_rows", "global_batch"), [(12, 4), (10, 4), (7, 7), (3, 8)])
def test_each_row_comes_once_in_an_epoch(num_rows, global_batch):
    plan = Plan(num_rows, global_batch, seed=1)
    stretch = epoch_rows(plan, range(1, num_rows + 1))  # global_batch epochs
    for epoch in range(global_batch):
        assert sorted(stretch[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_epochs_and_seeds_differ_in_order():
    orders = [Plan(100, 100, seed).draw(step, range(100)).rows.tolist() for seed in (1, 2) for step in (1, 2)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_together_draw_what_one_draws(size):
    plan = Plan(50, 32, seed=3)
    for step in (1, 2, 7):
        parts = [Plan(50, 32, 3).draw(step, range(r * 32 // size, (r + 1) * 32 // size)) for r in range(size)]
        whole = plan.draw(step, range(32))
        assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
        assert np.concatenate([part.epochs for part in parts]).tolist() == whole.epochs.tolist()


def test_any_step_is_drawn_without_those_before_it():
    walked = Plan(11, 4, seed=5)
    rows = [walked.draw(step, range(4)).rows.tolist() for step in range(1, 30)]
    assert Plan(11, 4, seed=5).draw(29, range(4)).rows.tolist() == rows[-1]
    assert walked.draw(2, range(4)).rows.tolist() == rows[1]  # and back again
    assert len(walked.orders) <= 3


def test_a_closed_batch_holds_every_row_at_every_step():
    plan = Plan(6, 6, seed=9)
    assert [sorted(plan.draw(step, range(6)).rows.tolist()) for step in (1, 2, 3)] == [list(range(6))] * 3


def test_epochs_become_steps_and_steps_epochs():
    plan = Plan(100, 32, seed=0)
    assert (plan.steps(1), plan.steps(2.5), plan.steps(0.001)) == (3, 8, 1)
    assert [plan.epoch(step) for step in (1, 2, 26)] == [0.0, 0.32, 8.0]


@pytest.mark.parametrize(("num_rows", "global_batch"), [(1000, 256), (40, 17), (16, 16), (31, 16), (33, 16), (7, 5)])
def test_no_row_stands_in_a_batch_twice_and_each_epoch_is_whole(num_rows, global_batch):
    plan = Plan(num_rows, global_batch, seed=3)
    draws = [plan.draw(step, range(global_batch)) for step in range(1, 60)]
    for draw in draws:
        assert len(set(draw.rows.tolist())) == global_batch
    rows = np.concatenate([draw.rows for draw in draws])
    for epoch in range(len(rows) // num_rows):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    for step in (1, 7, 23, 59):  # any step directly, without those before
        assert Plan(num_rows, global_batch, seed=3).draw(step, range(global_batch)).rows.tolist() == draws[step - 1].rows.tolist()
