"""Every rule of mining by hand, what the draw must not depend on, and all rules together against plain loops."""

import json
import math
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from bgetrain.search.negatives import Asked, random_places, same_text, select
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


# --- fill, equal queries, refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", [60, 200])  # sorted by hash, and drawn one by one
def test_random_places_are_distinct_allowed_and_a_function_of_seed_and_query(corpus):
    excluded = set(range(0, 60, 2))
    for name in (f"q{number}" for number in range(20)):
        found = random_places(corpus, 12, excluded, seed=1, query_name=name)
        assert len(found) == len(set(found)) == 12
        assert not set(found) & excluded
        assert all(0 <= place < corpus for place in found)
        assert found == random_places(corpus, 12, excluded, seed=1, query_name=name)
        assert found != random_places(corpus, 12, excluded, seed=2, query_name=name)
        assert found != random_places(corpus, 12, excluded, seed=1, query_name=f"{name}0")


def test_random_places_are_all_there_are_where_the_corpus_is_small():
    assert sorted(random_places(6, 10, {1, 4}, seed=1, query_name="q")) == [0, 2, 3, 5]


def test_random_places_cover_the_corpus_evenly():
    # 3,000 draws of 4 of 1,000: 12 each, standard deviation 3.5; 6 of them allowed
    counts = np.bincount(
        np.concatenate([random_places(1000, 4, (), seed=1, query_name=f"q{n}") for n in range(3000)]), minlength=1000
    )
    assert abs(counts - 12).max() < 21


def test_equal_queries_are_found():
    assert same_text(["a", "b", " a", "c", "b\n", "a"]) == {0: [0, 2, 5], 2: [0, 2, 5], 5: [0, 2, 5], 1: [1, 4], 4: [1, 4]}
    assert same_text([]) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 5, "last": 5}, "first=5 must be below last=5"),
        ({"first": 6, "last": 5}, "first=6 must be below last=5"),
        ({"min_score": 0.5, "max_score": 0.5}, "min_score=0.5 must be below max_score=0.5"),
    ],
)
def test_rules_that_leave_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        given(**changes)


# --- all together -----------------------------------------------------------------------------------------------------


def words_of(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)} or {tuple(words)}


def plain(
    places, scores, name, query, positives, own, lowest, names, texts, use: Rules, seed
) -> tuple[list[int], dict[str, int]]:
    """The rules of one query as plain loops."""
    dropped: dict[str, int] = {}
    left = []
    for place, score in zip(places, scores, strict=True):
        text = texts[place].strip()
        twins = [other for other in places if texts[other].strip() == text]
        limits = [
            ("empty", text == ""),
            ("positive", text in [each.strip() for each in positives]),
            ("query", text == query.strip()),
            ("equal_text", text in [each.strip() for each in own] or names[place] != min(names[other] for other in twins)),
            ("max_score", use.max_score is not None and score > use.max_score),
            ("min_score", use.min_score is not None and score < use.min_score),
            ("absolute_margin", use.absolute_margin is not None and score > lowest - use.absolute_margin),
            ("relative_margin", use.relative_margin is not None and score > lowest - use.relative_margin * abs(lowest)),
        ]
        reason = next((reason for reason, holds in limits if holds), None)
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            left.append((place, score))

    def key(pair):
        place, score = pair
        digest = blake2b(json.dumps([seed, name]).encode() + names[place].encode(), digest_size=8).digest()
        share = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52
        first = {"top": -score, "random": 0.0, "weighted": -(score / use.temperature - math.log(-math.log(share)))}[use.sampling]
        return first, digest, names[place]

    chosen: list[int] = []
    for place, _ in sorted(left, key=key):
        if len(chosen) == use.number:
            break
        near = [*positives, *own, *(texts[each] for each in chosen)] if use.near_duplicate is not None else []
        shared = [len(words_of(texts[place]) & words_of(text)) / len(words_of(texts[place]) | words_of(text)) for text in near]
        if any(each >= use.near_duplicate for each in shared):
            dropped["near_duplicate"] = dropped.get("near_duplicate", 0) + 1
        else:
            chosen.append(place)
    return chosen, dropped


@pytest.mark.parametrize("sampling", ["top", "random", "weighted"])
@pytest.mark.parametrize("seed", range(4))
def test_all_rules_together_are_those_of_plain_loops(sampling, seed):
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(list("abc"), random.integers(0, 9))) + " " * int(random.integers(2)) for _ in range(120)]
    names = [f"d{number}" for number in random.permutation(120)]
    places = np.stack([random.permutation(120)[:40] for _ in range(30)])
    scores = np.round(random.uniform(-0.2, 1, (30, 40)), 1)  # with ties
    lowest = np.round(random.uniform(0.3, 1, 30), 2)
    positives = [[texts[place] for place in random.integers(0, 120, random.integers(1, 4))] for _ in range(30)]
    own = [[texts[place] for place in random.integers(0, 120, random.integers(0, 3))] for _ in range(30)]
    queries, ids = [texts[place] for place in random.integers(0, 120, 30)], [f"q{row}" for row in range(30)]
    limits = dict(max_score=0.8, min_score=-0.1, absolute_margin=0.05, relative_margin=0.1, near_duplicate=0.6)
    use = given(number=5, sampling=sampling, temperature=0.2, **limits)
    found = select(
        places, scores, Asked(ids, queries, positives, own, lowest), names=dict(enumerate(names)), texts=dict(enumerate(texts)),
        rules=use, number=[5] * 30, seed=seed,
    )  # fmt: skip
    total: dict[str, int] = {}
    for row in range(30):
        chosen, dropped = plain(
            places[row].tolist(), scores[row].tolist(), ids[row], queries[row], positives[row], own[row], lowest[row], names,
            texts, use, seed,
        )  # fmt: skip
        assert places[row, found.columns[row]].tolist() == chosen
        total = {reason: total.get(reason, 0) + dropped.get(reason, 0) for reason in {**total, **dropped}}
    assert dict(found.dropped) == total
    assert set(total) == {"empty", "positive", "query", "equal_text", *limits}  # each rule was at work


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
