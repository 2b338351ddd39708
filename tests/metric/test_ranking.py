"""Ranking figures against hand-computed values and a reference of a few lines."""

from math import log2

import numpy as np
import pytest

from bgetrain.metric.ranking import score

NAMES = ["ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "ndcg@100", "mrr@10", "recall@10", "recall@100", "map"]


def run_of(*passages: str) -> dict[str, float]:
    """A run that ranks passages in this order."""
    return {passage: float(-rank) for rank, passage in enumerate(passages)}


def reference(run: dict, qrels: dict) -> dict[str, float]:
    """The same figures from their formulas; no ties in the run."""
    found = {name: [] for name in NAMES}
    for query, relevance in ((query, row) for query, row in qrels.items() if max(row.values()) > 0):
        ranked = sorted(run.get(query, {}), key=lambda passage: -run[query][passage])
        gains = [relevance.get(passage, 0) for passage in ranked]
        ranks = [rank for rank, gain in enumerate(gains, 1) if gain > 0]
        best, many = sorted(relevance.values(), reverse=True), sum(gain > 0 for gain in relevance.values())
        for k in (1, 3, 5, 10, 100):
            dcg, most = (sum(gain / log2(at + 2) for at, gain in enumerate(row[:k])) for row in (gains, best))
            found[f"ndcg@{k}"].append(dcg / most)
        for k in (10, 100):
            found[f"recall@{k}"].append(sum(rank <= k for rank in ranks) / many)
        found["mrr@10"].append(1 / ranks[0] if ranks and ranks[0] <= 10 else 0)
        found["map"].append(sum(place / rank for place, rank in enumerate(ranks, 1)) / many)
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_graded_relevance_by_hand():
    # gains 0, 2, 1 of an ideal 2, 1, 1: one relevant passage is not found
    figures = score({"q": run_of("x", "b", "a")}, {"q": {"a": 1, "b": 2, "c": 1, "x": 0}})
    ideal = 2 + 1 / log2(3) + 1 / 2
    expected = {"ndcg@1": 0, "ndcg@3": (2 / log2(3) + 1 / 2) / ideal, "mrr@10": 1 / 2, "recall@10": 2 / 3}
    expected |= {"map": (1 / 2 + 2 / 3) / 3}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert list(figures) == NAMES


@pytest.mark.parametrize(("rank", "value"), [(1, 1.0), (3, 1 / 3), (9, 1 / 9), (10, 1 / 10), (11, 0.0), (100, 0.0)])
def test_mrr_is_cut_after_rank_ten(rank, value):
    ranked = [f"x{other}" for other in range(120)]
    ranked[rank - 1] = "a"
    figures = score({"q": run_of(*ranked)}, {"q": {"a": 1}})
    assert figures["mrr@10"] == pytest.approx(value, abs=1e-9)
    assert figures["map"] == pytest.approx(1 / rank, abs=1e-9)


def test_query_without_results_counts_zero():
    qrels = {"found": {"a": 1}, "empty": {"a": 1}, "missing": {"a": 1}, "beside": {"a": 1}}
    figures = score({"found": run_of("a"), "empty": {}, "beside": run_of("b")}, qrels)
    assert figures == pytest.approx(dict.fromkeys(NAMES, 1 / 4), abs=1e-9)


def test_no_run_at_all_is_zero():
    assert score({}, {"q": {"a": 1}}) == dict.fromkeys(NAMES, 0.0)


def test_query_without_relevant_passages_and_query_without_judgements_are_not_counted():
    run = {query: run_of("a") for query in ("judged", "irrelevant", "unknown", "nothing")}
    figures = score(run, {"judged": {"a": 1}, "irrelevant": {"a": 0}, "nothing": {}})
    assert figures == pytest.approx(dict.fromkeys(NAMES, 1.0), abs=1e-9)


def test_equal_scores_are_ranked_by_name_last_first_whatever_the_order():
    for run in ({"a": 1.0, "b": 1.0}, {"b": 1.0, "a": 1.0}):
        assert score({"q": run}, {"q": {"a": 1}})["mrr@10"] == pytest.approx(1 / 2)
        assert score({"q": run}, {"q": {"b": 1}})["mrr@10"] == pytest.approx(1)


def test_numpy_scores_are_taken():
    scores = np.array([2, 1], np.float32)
    assert score({"q": {"a": scores[1], "b": scores[0]}}, {"q": {"a": 1}})["mrr@10"] == pytest.approx(1 / 2)


def test_nothing_relevant_is_refused():
    with pytest.raises(ValueError, match="none of 2 queries has a passage of relevance 1 or above"):
        score({"q": run_of("a")}, {"q": {"a": 0}, "r": {}})


@pytest.mark.parametrize("seed", range(5))
def test_random_runs_equal_the_formulas(seed):
    random = np.random.default_rng(seed)
    passages = [f"d{number}" for number in range(300)]
    run, qrels = {}, {}
    for query in map(str, range(40)):
        ranked = random.permutation(passages)[: random.integers(0, 200)]
        run[query] = run_of(*ranked.tolist())
        judged = random.choice(passages, random.integers(1, 30), replace=False).tolist()
        qrels[query] = dict(zip(judged, random.integers(0, 4, len(judged)).tolist(), strict=True))
    assert score(run, qrels) == pytest.approx(reference(run, qrels), abs=1e-9)
