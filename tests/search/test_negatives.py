"""Every rule of mining by hand, and what the draw must not depend on."""

import math
from typing import Any

import numpy as np
import pytest

from bgetrain.search.negatives import Asked, select
from bgetrain.search.rules import Rules, rules

PASSAGES = [f"text {number}" for number in range(100)]
OFF: dict[str, Any] = dict(
    first=0, last=100, number=100, sampling="random", temperature=0.05, max_score=None, min_score=None, absolute_margin=None,
    relative_margin=None, near_duplicate=None, fill="none", keep_negatives=False, rescore=None, rescore_batch=8,
    write_scores=False,
)  # fmt: skip


def given(**changes: Any) -> Rules:
    return rules(**{**OFF, **changes})


def mined(
    ranked, passages=None, positives=((),), queries=("query",), query_ids=None, ids=None, scores=None, lowest=None, own=None,
    seed=1, **changes,
):  # fmt: skip
    """`select` for candidates in the order of their ranks, which score 1 - rank / 1000 unless `scores` says otherwise."""
    passages = PASSAGES if passages is None else passages
    ids = [f"d{number}" for number in range(len(passages))] if ids is None else ids
    query_ids = ["q"] if query_ids is None else query_ids
    places = np.array(ranked, np.int64).reshape(len(query_ids), -1)
    if scores is None:
        scores = np.tile(1 - np.arange(places.shape[1]) / 1000, (len(places), 1))
    lowest = np.full(len(places), 2.0) if lowest is None else np.array(lowest, float)
    asked = Asked(query_ids, queries, positives, [[]] * len(places) if own is None else own, lowest)
    chosen = given(**changes)
    found = select(
        places, np.array(scores, float), asked, names=dict(enumerate(ids)), texts=dict(enumerate(passages)), rules=chosen,
        number=[chosen.number] * len(places), seed=seed,
    )  # fmt: skip
    return [places[row, columns].tolist() for row, columns in enumerate(found.columns)], dict(found.dropped)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_positives_and_their_duplicates_are_dropped_by_stripped_text():
    passages = ["gold", "other", " gold\n", "second gold", "Gold"]
    found, dropped = mined([[0, 1, 2, 3, 4]], passages, positives=[["gold ", "second gold"]])
    assert sorted(found[0]) == [1, 4]
    assert dropped == {"positive": 3}


def test_empty_passages_are_dropped_even_where_a_positive_is_empty():
    assert mined([[0, 1, 2]], ["", "an answer", " \n"], positives=[[""]]) == ([[1]], {"empty": 2})


def test_text_of_the_query_itself_is_dropped():
    assert mined([[0, 1]], ["what is it ", "an answer"], queries=[" what is it"]) == ([[1]], {"query": 1})


def test_of_equal_texts_the_smallest_passage_id_stays_whatever_the_order():
    passages, ids = ["same", "other", "same ", " same"], ["d8", "d1", "d2", "d5"]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 1, 2]):
        found, dropped = mined([order], passages, ids=ids)
        assert sorted(found[0]) == [1, 2]
        assert dropped == {"equal_text": 2}


def test_positives_of_another_query_stay():
    found, _ = mined([[0, 1], [0, 1]], positives=[["text 0"], ["text 1"]], query_ids=["a", "b"], queries=["x", "y"])
    assert found == [[1], [0]]


def test_what_is_a_negative_already_is_not_drawn_again():
    assert mined([[0, 1, 2]], own=[["text 1", "elsewhere"]], sampling="top") == ([[0, 2]], {"equal_text": 1})


def test_a_candidate_that_is_missing_is_neither_drawn_nor_counted():
    assert mined([[4, -1, 5, -1]], sampling="top") == ([[4, 5]], {})


# --- scores -----------------------------------------------------------------------------------------------------------

SCORES = [[0.9, 0.8, 0.7, 0.6]]


@pytest.mark.parametrize(
    ("changes", "lowest", "left", "reason"),
    [
        ({"max_score": 0.8}, 2.0, [1, 2, 3], "max_score"),  # the bound itself is kept
        ({"min_score": 0.7}, 2.0, [0, 1, 2], "min_score"),
        ({"absolute_margin": 0.25}, 1.0, [2, 3], "absolute_margin"),  # up to 0.75
        ({"absolute_margin": 0.0}, 0.8, [1, 2, 3], "absolute_margin"),  # never above the positive
        ({"relative_margin": 0.05}, 0.8, [2, 3], "relative_margin"),  # up to 0.76
        ({"relative_margin": 0.25}, 0.8, [3], "relative_margin"),  # up to 0.6
    ],
)
def test_each_rule_on_scores_by_hand(changes, lowest, left, reason):
    found, dropped = mined([[0, 1, 2, 3]], scores=SCORES, lowest=[lowest], sampling="top", **changes)
    assert found == [left]
    assert dropped == {reason: 4 - len(left)}


def test_relative_margin_lies_below_a_negative_score_of_the_positive_too():
    # a cross-encoder's logits: 0.5 x |-2| below -2 is -3; (1 - 0.5) x -2 = -1 would let all of them through
    found, _ = mined([[0, 1, 2]], scores=[[-1.5, -2.5, -3.5]], lowest=[-2.0], sampling="top", relative_margin=0.5)
    assert found == [[2]]


def test_each_query_is_held_against_its_own_positive():
    # sentence-transformers up to 5.2 read the row of another query where a query before had several positives
    found, _ = mined(
        [[0, 1, 2, 3]] * 3, scores=SCORES * 3, lowest=[0.95, 0.65, 0.75], query_ids=["a", "b", "c"], queries=["x", "y", "z"],
        positives=[["p", "r"], ["s"], ["t"]], sampling="top", absolute_margin=0.0,
    )  # fmt: skip
    assert found == [[0, 1, 2, 3], [3], [2, 3]]


def test_a_candidate_counts_for_the_first_rule_that_drops_it():
    _, dropped = mined(
        [[0, 1, 2]], positives=[["text 0"]], scores=[[0.9, 0.8, 0.1]], max_score=0.5, relative_margin=0.9, lowest=[0.9]
    )
    assert dropped == {"positive": 1, "max_score": 1, "relative_margin": 1}


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="query 'q': the score of passage 'd1' is nan"):
        mined([[0, 1]], scores=[[0.5, math.nan]])


# --- near-duplicates --------------------------------------------------------------------------------------------------

LONG = "the quick brown fox jumps over the lazy dog and runs back into the wide green forest again before night"


def test_near_duplicates_of_a_positive_and_of_one_another_are_passed_over():
    passages = [LONG, f"{LONG.upper()}!", "something else", f"{LONG} falls", "something else entirely different from that"]
    # 18 runs of three words and 19 with one word more: 18 / 19 = 0.947
    found, dropped = mined([[1, 2, 3, 4]], passages, positives=[[LONG]], sampling="top", near_duplicate=0.9)
    assert found == [[2, 4]]
    assert dropped == {"near_duplicate": 2}
    assert mined([[1, 2, 3, 4]], passages, positives=[[LONG]], sampling="top", near_duplicate=0.95)[0] == [[2, 3, 4]]
    assert mined([[0, 3, 1, 2]], passages, sampling="top", near_duplicate=0.9, number=2)[0] == [[0, 2]]
    assert mined([[1, 2, 3, 4]], passages, positives=[[LONG]], sampling="top")[0] == [[1, 2, 3, 4]]


def test_scripts_without_spaces_are_compared_sign_by_sign():
    text = "北京是中华人民共和国的首都也是全国的政治文化中心"
    passages = [text, text.replace("北京", "南京"), "上海是一座城市"]
    # 22 runs of three signs; another first sign changes one of them: 21 / 23 = 0.913
    assert mined([[0, 1, 2]], passages, sampling="top", near_duplicate=0.9)[0] == [[0, 2]]
    assert mined([[0, 1, 2]], passages, sampling="top", near_duplicate=0.92)[0] == [[0, 1, 2]]


def test_only_what_the_draw_looks_at_counts_as_a_near_duplicate():
    assert mined([[0, 1, 2]], ["a b c", "a b c!", "a b c?"], sampling="top", near_duplicate=0.9, number=1) == ([[0]], {})


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_fewer_than_number_gives_all_and_more_gives_number():
    window = [list(range(20))]
    assert sorted(mined(window, number=50)[0][0]) == list(range(20))
    seven = mined(window, number=7)[0][0]
    assert len(set(seven)) == 7
    assert set(seven) < set(range(20))


def test_top_takes_the_best_scores_whatever_the_order_of_the_candidates():
    assert mined([[3, 1, 2, 0]], scores=[[0.1, 0.4, 0.2, 0.3]], sampling="top", number=2)[0] == [[1, 0]]


@pytest.mark.parametrize("sampling", ["top", "random", "weighted"])
def test_ties_and_the_order_of_candidates_do_not_change_the_draw(sampling):
    random = np.random.default_rng(0)
    scores = np.repeat([0.5, 0.4], 25)
    draws = set()
    for _ in range(10):
        order = random.permutation(50)
        draws.add(tuple(mined([order], scores=[scores[order]], sampling=sampling, number=7)[0][0]))
    assert len(draws) == 1


@pytest.mark.parametrize("sampling", ["random", "weighted"])
def test_draw_depends_on_seed_and_query_id_and_nothing_else_of_the_query(sampling):
    window, more = [list(range(50))], dict(number=7, sampling=sampling)
    first = mined(window, **more)
    assert mined(window, **more) == first == mined(window, queries=["another text"], **more)
    assert mined(window, seed=2, **more) != first
    assert mined(window, query_ids=["r"], **more) != first


def test_ids_that_run_together_draw_apart():
    window, passages = [list(range(10))], PASSAGES[:10]
    one = mined(window, passages, query_ids=["a"], ids=[f"b{number}" for number in range(10)])
    other = mined(window, passages, query_ids=["ab"], ids=[f"{number}" for number in range(10)])
    assert one != other


def test_every_rank_of_the_window_is_drawn_equally_often():
    # 2,000 queries draw 5 of 20: 500 each, standard deviation 19; 5 of them allowed
    ids = [f"q{row}" for row in range(2000)]
    found, _ = mined(np.tile(np.arange(20), (2000, 1)), query_ids=ids, queries=ids, positives=[[]] * 2000, number=5)
    counts = np.bincount(np.concatenate(found), minlength=20)
    assert (np.abs(counts - 500) < 97).all()


def test_weighted_draws_follow_exp_of_score_over_temperature():
    # one of four with weights e^0 : e^1 : e^2 : e^3; 4,000 queries, standard deviation at most 31; 5 of them allowed
    ids = [f"q{row}" for row in range(4000)]
    scores = np.tile([0.1, 0.2, 0.3, 0.4], (4000, 1))
    found, _ = mined(
        np.tile(np.arange(4), (4000, 1)), query_ids=ids, queries=ids, positives=[[]] * 4000, scores=scores, number=1,
        sampling="weighted", temperature=0.1,
    )  # fmt: skip
    expected = 4000 * np.exp([0, 1, 2, 3]) / np.exp([0, 1, 2, 3]).sum()
    assert (np.abs(np.bincount(np.concatenate(found), minlength=4) - expected) < 155).all()


def test_weighted_draws_without_replacement():
    found = mined([list(range(9))], scores=[np.linspace(1, 0, 9)], sampling="weighted", temperature=0.01)[0][0]
    assert sorted(found) == list(range(9))


def test_a_querys_draw_is_the_same_among_any_other_queries():
    random = np.random.default_rng(0)
    ranked = np.stack([random.permutation(100)[:40] for _ in range(6)])
    ids, texts = [f"q{row}" for row in range(6)], [f"query {row}" for row in range(6)]

    def part(rows: list[int]) -> list[list[int]]:
        named = dict(query_ids=[ids[row] for row in rows], queries=[texts[row] for row in rows], positives=[[]] * len(rows))
        return mined(ranked[rows], number=5, **named)[0]

    together = part([0, 1, 2, 3, 4, 5])
    assert [*part([0, 1]), *part([2]), *part([3, 4, 5])] == together
    assert part([5, 0, 3]) == [together[5], together[0], together[3]]
