"""Every rule of mining by hand, and what the draw must not depend on."""

import numpy as np
import pytest

from bgetrain.search.negatives import draw

PASSAGES = [f"text {number}" for number in range(100)]


def mined(ranked, passages=None, positives=((),), query="query", **changes) -> list[list[int]]:
    """Calls `draw` for one query unless `changes` says otherwise; takes all of the window."""
    passages = PASSAGES if passages is None else passages
    settings = dict(query_ids=["q"], queries=[query], positives=positives, passages=passages, first=0, last=100)
    settings |= dict(passage_ids=[f"d{number}" for number in range(len(passages))], number=100, seed=1)
    return draw(np.array(ranked, np.int64), **(settings | changes))


def test_window_is_zero_based_and_half_open():
    assert sorted(mined([[9, 8, 7, 6, 5, 4]], first=2, last=5)[0]) == [5, 6, 7]


def test_ranks_are_counted_before_positives_are_dropped():
    # the positive holds rank 1: the window stays ranks 1 and 2, and does not move on to rank 3
    assert mined([[9, 8, 7, 6]], positives=[["text 8"]], first=1, last=3) == [[7]]


def test_window_ends_where_the_ranking_ends():
    assert sorted(mined([[9, 8, 7]], first=1, last=50)[0]) == [7, 8]
    assert mined([[9, 8, 7]], first=10, last=50) == [[]]


def test_positives_and_their_duplicates_are_dropped_by_stripped_text():
    passages = ["gold", "other", " gold\n", "second gold", "Gold"]
    assert sorted(mined([[0, 1, 2, 3, 4]], passages, positives=[["gold ", "second gold"]])[0]) == [1, 4]


def test_empty_passages_are_dropped():
    assert mined([[0, 1, 2]], ["", "an answer", " \n"]) == [[1]]


def test_text_of_the_query_itself_is_dropped():
    assert mined([[0, 1]], ["what is it ", "an answer"], query=" what is it") == [[1]]


def test_of_equal_texts_the_smallest_passage_id_stays_whatever_the_order():
    passages = ["same", "other", "same ", " same"]
    ids = ["d8", "d1", "d2", "d5"]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 1, 2]):
        assert sorted(mined([order], passages, passage_ids=ids)[0]) == [1, 2]


def test_positives_of_another_query_stay():
    ranked = [[0, 1], [0, 1]]
    both = mined(ranked, positives=[["text 0"], ["text 1"]], query_ids=["a", "b"], queries=["x", "y"])
    assert both == [[1], [0]]


def test_fewer_than_number_gives_all_and_more_gives_number():
    window = [list(range(20))]
    assert sorted(mined(window, number=50)[0]) == list(range(20))
    seven = mined(window, number=7)[0]
    assert len(set(seven)) == 7
    assert set(seven) < set(range(20))


def test_draw_depends_on_seed_and_query_id_and_nothing_else_of_the_query():
    window = [list(range(50))]
    first = mined(window, number=7)
    assert mined(window, number=7) == first == mined(window, number=7, query="another text")
    assert mined(window, number=7, seed=2) != first
    assert mined(window, number=7, query_ids=["r"]) != first


def test_order_within_the_window_does_not_change_the_draw():
    random = np.random.default_rng(0)
    window = np.arange(50)
    assert len({tuple(mined([random.permutation(window)], number=7)[0]) for _ in range(10)}) == 1


def test_a_querys_draw_is_the_same_among_any_other_queries():
    random = np.random.default_rng(0)
    ranked = np.stack([random.permutation(100)[:40] for _ in range(6)])
    ids, texts, positives = [f"q{row}" for row in range(6)], [f"query {row}" for row in range(6)], [[]] * 6

    def part(rows: list[int]) -> list[list[int]]:
        chosen = dict(query_ids=[ids[row] for row in rows], queries=[texts[row] for row in rows])
        return mined(ranked[rows], positives=[positives[row] for row in rows], number=5, first=3, last=30, **chosen)

    together = part([0, 1, 2, 3, 4, 5])
    assert [*part([0, 1]), *part([2]), *part([3, 4, 5])] == together
    assert part([5, 0, 3]) == [together[5], together[0], together[3]]


def test_ids_that_run_together_draw_apart():
    window, passages = [list(range(10))], PASSAGES[:10]
    one = mined(window, passages, number=10, query_ids=["a"], passage_ids=[f"b{number}" for number in range(10)])
    other = mined(window, passages, number=10, query_ids=["ab"], passage_ids=[f"{number}" for number in range(10)])
    assert one != other


def test_every_rank_of_the_window_is_drawn_equally_often():
    # 2,000 queries draw 5 of 20: 500 each, standard deviation 19; 5 of them allowed
    ids = [f"q{row}" for row in range(2000)]
    ranked = np.tile(np.arange(20), (2000, 1))
    drawn = mined(ranked, query_ids=ids, queries=ids, positives=[[]] * 2000, number=5)
    counts = np.bincount(np.concatenate(drawn), minlength=20)
    assert (np.abs(counts - 500) < 97).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 5, "last": 5}, "first=5 must be below last=5"),
        ({"first": 6, "last": 5}, "first=6 must be below last=5"),
        ({"queries": ["a", "b"]}, "1 rows for 1 query_ids, 2 queries and 1 positives"),
        ({"passage_ids": ["d0"]}, "1 passage_ids for 100 passages"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mined([[0, 1]], **changes)
