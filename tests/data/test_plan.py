"""The order of the data: permutations, world sizes, and that no release may change it unseen."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from plans import single

from bgetrain.data.order import hashed, shuffled
from bgetrain.data.plan import Draw, Plan, Stream


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
    return [row for step in steps for row in plan.draw(step, range(plan.size(step))).rows.tolist()]


def test_hashed_is_splitmix64_and_arrays_broadcast():
    assert int(hashed(0)) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from seed 0, as published with its code
    assert int(hashed(1, 2, 2**62)) == splitmix([1, 2, 2**62])
    grid = hashed(7, np.arange(3)[:, None], np.arange(4))
    assert grid.dtype == np.uint64
    assert grid.tolist() == [[splitmix([7, row, column]) for column in range(4)] for row in range(3)]


def test_hashes_of_neighbours_fill_the_range_evenly():
    counts = np.bincount((hashed(1, np.arange(16_000)) % np.uint64(16)).astype(int))
    assert np.abs(counts - 1000).max() < 5 * 31  # five standard deviations


@pytest.mark.parametrize(("num_rows", "global_batch"), [(12, 4), (10, 4), (7, 7), (3, 8)])
def test_each_row_comes_once_in_an_epoch(num_rows, global_batch):
    plan = single(num_rows, global_batch, seed=1)
    stretch = epoch_rows(plan, range(1, num_rows + 1))  # global_batch epochs
    for epoch in range(global_batch):
        assert sorted(stretch[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_epochs_and_seeds_differ_in_order():
    orders = [single(100, 100, seed).draw(step, range(100)).rows.tolist() for seed in (1, 2) for step in (1, 2)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_together_draw_what_one_draws(size):
    plan = single(50, 32, seed=3)
    for step in (1, 2, 7):
        parts = [single(50, 32, 3).draw(step, range(r * 32 // size, (r + 1) * 32 // size)) for r in range(size)]
        whole = plan.draw(step, range(32))
        assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
        assert np.concatenate([part.epochs for part in parts]).tolist() == whole.epochs.tolist()


def test_any_step_is_drawn_without_those_before_it():
    walked = single(11, 4, seed=5)
    rows = [walked.draw(step, range(4)).rows.tolist() for step in range(1, 30)]
    assert single(11, 4, seed=5).draw(29, range(4)).rows.tolist() == rows[-1]
    assert walked.draw(2, range(4)).rows.tolist() == rows[1]  # and back again


def test_a_closed_batch_holds_every_row_at_every_step():
    plan = single(6, 6, seed=9)
    assert [sorted(plan.draw(step, range(6)).rows.tolist()) for step in (1, 2, 3)] == [list(range(6))] * 3


def test_epochs_become_steps_and_steps_epochs():
    plan = single(100, 32, seed=0)
    assert (plan.steps(1), plan.steps(2.5), plan.steps(0.001)) == (3, 8, 1)
    assert [plan.epoch(step) for step in (1, 2, 26)] == [0.0, 0.32, 8.0]


@pytest.mark.parametrize(("num_rows", "global_batch"), [(1000, 256), (40, 17), (16, 16), (31, 16), (33, 16), (7, 5)])
def test_no_row_stands_in_a_batch_twice_and_each_epoch_is_whole(num_rows, global_batch):
    plan = single(num_rows, global_batch, seed=3)
    draws = [plan.draw(step, range(global_batch)) for step in range(1, 60)]
    for draw in draws:
        assert len(set(draw.rows.tolist())) == global_batch
    rows = np.concatenate([draw.rows for draw in draws])
    for epoch in range(len(rows) // num_rows):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    for step in (1, 7, 23, 59):  # any step directly, without those before
        fresh = single(num_rows, global_batch, seed=3).draw(step, range(global_batch))
        assert fresh.rows.tolist() == draws[step - 1].rows.tolist()


def test_the_order_is_what_it_has_always_been():
    # a release with other numbers would go on with other rows where a run is resumed under it
    assert shuffled(np.arange(12), 12, 7, 3).tolist() == [0, 3, 5, 4, 2, 9, 6, 7, 1, 11, 10, 8]
    assert shuffled(np.array([0, 1, 229_999_999]), 230_000_000, 7).tolist() == [191701663, 19667076, 56991205]
    draw = single(10, 4, 42).draw(3)  # the end of the first epoch and the start of the second
    assert (draw.rows.tolist(), draw.epochs.tolist()) == ([1, 3, 8, 2], [0, 0, 1, 1])
    plan = Plan([Stream(1000, 4, 0.5), Stream(7, 3, 0.2), Stream(90, 4, 0.3)], 5)
    assert [plan.source(step) for step in range(1, 13)] == [2, 0, 0, 1, 1, 0, 2, 0, 2, 0, 0, 2]
    assert (plan.draw(12).rows.tolist(), plan.draw(70).rows.tolist()) == ([73, 68, 66, 57], [2, 4, 5])
    mixed = Plan([Stream(1000, 12, 0.5), Stream(7, 12, 0.2), Stream(90, 12, 0.3)], 5, mixed=True).draw(9)
    assert mixed.sources.tolist() == [0, 0, 1, 0, 0, 2, 2, 0, 2, 0, 0, 1]
    assert mixed.rows.tolist() == [605, 295, 1, 618, 400, 22, 33, 71, 34, 345, 163, 4]


def swap_or_not(place: int, size: int, keys: list[int]) -> int:
    """The paper's algorithm, one place at a time, in whole numbers of Python."""
    for number in range(64):
        partner = (splitmix([*keys, 0, number]) % size - place) % size
        if splitmix([splitmix([*keys, 1, number]) >> 1, max(place, partner)]) & 1:
            place = partner
    return place


@pytest.mark.parametrize("size", [1, 2, 3, 37])
def test_shuffled_is_a_permutation_as_the_paper_has_it_and_has_a_way_back(size):
    found = shuffled(np.arange(size), size, 5, 9)
    assert found.tolist() == [swap_or_not(place, size, [5, 9]) for place in range(size)]
    assert sorted(found.tolist()) == list(range(size))
    assert shuffled(found, size, 5, 9, inverse=True).tolist() == list(range(size))


def test_permutations_are_uniform():
    counts = Counter(tuple(shuffled(np.arange(4), 4, 1, epoch).tolist()) for epoch in range(2_400))
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 49.7  # chi-squared, 23 degrees, p = 0.001


@pytest.mark.parametrize("size", [1000, 10**6, 230_000_000])
def test_neighbours_and_places_leave_no_trace_in_the_order(size):
    """Correlations of 4,000 rows with their place, their neighbour's row and the next epoch's: |z| < 4."""
    places = np.linspace(0, size - 1, 1000 if size == 1000 else 4000).astype(np.int64)
    orders = [shuffled(places, size, 3, epoch).astype(float) for epoch in (0, 1)]
    pairs = [(orders[0], places), (orders[0][1:], orders[0][:-1]), orders]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) * np.sqrt(len(one)) < 4
    tenths = np.bincount((orders[0] * 10 // size).astype(int), minlength=10)
    assert ((tenths - len(places) / 10) ** 2 / (len(places) / 10)).sum() < 27.9  # chi-squared, 9 degrees, p = 0.001


def test_a_step_of_230_million_rows_is_drawn_in_memory_of_the_batch():
    plan = Plan([Stream(230_000_000, 1024, 0.9), Stream(3_000_000, 512, 0.1)], 1)
    plan.draw(1)
    tracemalloc.start()
    for step in (7, 10**9, 230_000_000 // 1024):
        plan.draw(step)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000  # bytes; one stored permutation would be 1.8e9
    tracemalloc.stop()


MIXTURE = [Stream(1000, 32, 0.5), Stream(50, 24, 0.1), Stream(333, 16, 0.4)]


def walked(mixed: bool, streams=MIXTURE, steps=400):
    streams = [stream._replace(batch=32) for stream in streams] if mixed else streams
    plan = Plan(streams, 3, mixed=mixed)
    return plan, [plan.draw(step) for step in range(1, steps + 1)]


@pytest.mark.parametrize("mixed", [False, True])
def test_each_source_goes_through_whole_epochs_and_no_row_stands_in_a_batch_twice(mixed):
    _, draws = walked(mixed)
    for draw in draws:
        assert len(set(zip(draw.sources.tolist(), draw.rows.tolist(), strict=True))) == len(draw.rows)
    sources, rows, epochs = (np.concatenate([getattr(draw, name) for draw in draws]) for name in Draw._fields)
    for source, stream in enumerate(MIXTURE):
        of_source = epochs[sources == source]
        assert of_source.max() > 3
        assert (np.sort(of_source) == of_source).all() or mixed  # inside a mixed batch the epochs of a seam may alternate
        for epoch in range(of_source.max()):
            assert sorted(rows[(sources == source) & (epochs == epoch)].tolist()) == list(range(stream.rows))


@pytest.mark.parametrize("mixed", [False, True])
def test_any_step_of_a_mixture_is_drawn_without_those_before_it_on_any_number_of_ranks(mixed):
    plan, draws = walked(mixed)
    for step in (400, 1, 50, 129, 64, 65):
        fresh, _ = walked(mixed, steps=0)
        for size in (1, 3):
            total = fresh.size(step)
            parts = [fresh.draw(step, range(rank * total // size, (rank + 1) * total // size)) for rank in range(size)]
            for name in Draw._fields:
                whole = np.concatenate([getattr(part, name) for part in parts])
                assert whole.tolist() == getattr(draws[step - 1], name).tolist()
        assert fresh.source(step) == (None if mixed else draws[step - 1].sources[0])
        assert fresh.epoch(step) == pytest.approx(sum(len(draw.rows) for draw in draws[: step - 1]) / 1383)
    assert plan.size(1) == len(draws[0].rows)


def test_shares_of_rows_are_kept_at_every_step():
    _, draws = walked(mixed=True)
    drawn = np.cumsum([np.bincount(draw.sources, minlength=3) for draw in draws], axis=0)
    wanted = np.outer(np.arange(1, 401) * 32, [0.5, 0.1, 0.4])
    assert np.abs(drawn - wanted).max() <= 2  # rows; one for each source but the largest
    _, draws = walked(mixed=False)
    steps = np.cumsum([np.eye(3)[draw.sources[0]] for draw in draws], axis=0)
    portions = np.array([0.5 / 32, 0.1 / 24, 0.4 / 16]) / (0.5 / 32 + 0.1 / 24 + 0.4 / 16)
    assert np.abs(steps - np.outer(np.arange(1, 401), portions)).max() <= 3  # steps
    assert len({tuple(int(draw.sources[0]) for draw in draws[start : start + 20]) for start in range(0, 400, 20)}) > 10


def test_a_small_source_that_a_step_seldom_takes_is_taken_all_the_same():
    plan = Plan([Stream(10**6, 8, 0.9999), Stream(20, 8, 0.0001)], 1, mixed=True)
    counts = [int((plan.dealt(step) - plan.dealt(step - 1))[1]) for step in range(1, 5001)]
    assert np.count_nonzero(plan.draw(1 + counts.index(1)).sources == 1) == 1
    assert set(counts) == {0, 1}
    assert sum(counts) == pytest.approx(4, abs=1)


def test_a_mixed_batch_too_small_for_its_sources_is_refused():
    with pytest.raises(ValueError, match=r"^global_batch=4 is too small to mix 6 sources in it: use 36 or more, or batches from"):
        Plan([Stream(10, 4, 1 / 6)] * 6, 0, mixed=True)


@pytest.mark.parametrize(("rows", "batch", "step"), [(5001, 2048, 3000), (10_001, 8192, 300), (40_001, 32_768, 2000)])
def test_a_late_step_of_a_source_of_few_batches_looks_back_over_few_epochs(rows, batch, step):
    plan = single(rows, batch, 1)
    seen: list[int] = []
    inside = plan.orders[0].exchange_after
    plan.orders[0].exchange_after = lambda epoch: (seen.append(epoch), inside(epoch))[1]
    assert len(set(plan.draw(step).rows.tolist())) == batch
    assert len(seen) < 12  # of hundreds of epochs


def test_the_most_rows_of_a_source_in_a_mixed_batch():
    plan, draws = walked(mixed=True)
    counts = np.array([np.bincount(draw.sources, minlength=3) for draw in draws])
    assert (counts.max(0) <= [plan.most(source) for source in range(3)]).all()
    assert plan.most(1) == 4  # 32 * 0.1, rounded up: a source of 4 rows would do


def test_epochs_of_a_mixture_become_steps():
    plan, _ = walked(mixed=False, steps=0)
    assert plan.steps(2) == round(2 * 1383 * (0.5 / 32 + 0.1 / 24 + 0.4 / 16))
    assert plan.epoch(plan.steps(2) + 1) == pytest.approx(2, abs=0.1)
