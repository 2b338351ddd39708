"""All rules of mining together against plain loops, passages drawn at random, equal queries, rules that are refused."""

import json
import math
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from bgetrain.search.negatives import Asked, random_places, same_text, select
from bgetrain.search.rules import Rules, rules

OFF: dict[str, Any] = dict(
    first=0, last=100, number=100, sampling="random", temperature=0.05, max_score=None, min_score=None, absolute_margin=None,
    relative_margin=None, near_duplicate=None, fill="none", keep_negatives=False, rescore=None, rescore_batch=8,
    write_scores=False,
)  # fmt: skip


def given(**changes: Any) -> Rules:
    return rules(**{**OFF, **changes})


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
            ("absolute_margin", use.absolute_margin is not None and score > lowest + 1e-6 - use.absolute_margin),
            ("relative_margin", use.relative_margin is not None and score > lowest + 1e-6 - use.relative_margin * abs(lowest)),
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
