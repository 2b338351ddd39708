"""What a filter keeps: ranks by a slow count, draws, sums of counts."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from bgetrain import config
from bgetrain.search import filtering, tally
from bgetrain.sources import Row


def test_places_are_spread_one_from_each_stretch():
    hashes = np.random.default_rng(0).integers(0, 1 << 63, 1000).astype(np.uint64)
    drawn = filtering.spread(12345, 1000, hashes)
    assert (drawn * 1000 // 12345 - np.arange(1000)).min() >= -1
    edges = np.arange(1001) * 12345 // 1000
    assert ((edges[:-1] <= drawn) & (drawn < edges[1:])).all()
    assert filtering.spread(7, 1000, hashes[:7]).tolist() == list(range(7))
    assert len(filtering.spread(0, 5, hashes[:0])) == 0


def test_ranks_equal_a_slow_count_over_shards_with_repeats_and_own_positives():
    draw = np.random.default_rng(1)

    def unit(count: int) -> np.ndarray:
        rows = draw.normal(size=(count, 8)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    texts = draw.integers(0, 300, 500)  # the text of each passage of the pool, some again
    vectors = unit(300)
    owners = np.sort(draw.integers(0, 50, 90))
    keys = draw.integers(0, 400, 90)  # some positives are in the pool
    passages, queries = unit(90), unit(50)
    passages[keys < 300] = vectors[keys[keys < 300]]
    pool = filtering.pooled([vectors[texts[:200]], vectors[texts[200:]]], texts)
    found = filtering.ranks(queries, passages, owners, keys, pool, torch.device("cpu"))
    for pair, owner in enumerate(owners):
        others = [text for text in set(texts) if text not in keys[owners == owner]]
        scores = vectors[others].astype(np.float64) @ queries[owner]
        assert found[pair] == 1 + (scores > passages[pair].astype(np.float64) @ queries[owner]).sum()


def test_an_equal_score_is_no_nearer_however_it_was_added_up():
    """200 positives whose vectors stand in the pool under another text, as texts do that are cut at the same tokens."""
    rows = np.random.default_rng(2).normal(size=(400, 384)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    queries, passages = unit[:200], unit[200:]
    pool = filtering.pooled([passages], np.arange(200))
    found = filtering.ranks(queries, passages, np.arange(200), np.arange(1000, 1200), pool, torch.device("cpu"))
    exact = passages.astype(np.float64) @ queries.astype(np.float64).T  # [passage, query]
    assert found.tolist() == [1 + int((exact[:, query] > exact[query, query] + 1e-9).sum()) for query in range(200)]


def test_summed_counts_tell_quantiles_and_shares_to_a_bin():
    values = np.round(np.random.default_rng(2).uniform(-1, 1, 5000), 4)
    values[:3] = [0.43, 0.4299, 1.0]
    parts = []
    for piece in np.split(values, 5):
        why = [None if value >= 0.43 else "similarity" for value in piece]
        parts.append(tally.counted(np.arange(1000), piece, np.arange(1000) + 1, why, ["a"] * 400 + ["b"] * 600))
    total: dict[str, Any] = {}
    for part in parts:
        total = tally.plus(total, part)
    found = tally.summary(total)
    assert found["rows_kept"] == (values >= 0.43).sum() == found["positives_kept"]
    assert found["rows_kept"] + found["rows_dropped"] == 5000
    for share, value in found["quantiles"].items():
        assert value == pytest.approx(np.quantile(values, float(share), method="inverted_cdf"), abs=1e-3)
    for least, share in found["kept_at"].items():
        assert share == pytest.approx((values >= float(least)).mean(), abs=1e-12)
    assert found["ranked_within"]["10"] == 0.01
    assert found["sources"]["b"]["rows"] == 3000
    json.dumps(found)


def test_lines_of_rows_without_a_wanted_positive_are_left_out():
    rows = [Row("a", ["x", "y"], [], None), Row("b", ["z"], ["n"], "p")]
    similarity = np.array([0.5, 0.1, 0.9])
    kept = filtering.lines(rows, similarity, None, [None, "similarity", None], kept=True)
    assert [json.loads(line)["pos"] for line in kept] == [["x"], ["z"]]
    dropped = filtering.lines(rows, similarity, np.array([1, 9, 1]), [None, "rank", None], kept=False)
    assert [json.loads(line) for line in dropped] == [
        {"query": "a", "pos": ["y"], "pos_scores": [0.1], "similarity": [0.1], "rank": [9], "dropped_by": ["rank"]}
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["filter.min_similarity=null"], "filter.min_similarity and filter.top_k are both null"),
        (["filter.min_similarity=43"], "filter.min_similarity=43 must be from -1 to 1"),
        (["filter.top_k=9", "filter.pool=9"], "filter.top_k=9 must be below filter.pool=9"),
        (["filter.sample=0"], "filter.sample must be a whole number above 0 or null"),
    ],
)
def test_settings_that_filter_nothing_are_refused_before_anything_starts(changes, said):
    with pytest.raises(ValueError, match=said):
        config.compose(["stage=filter", *changes])
    config.compose(["stage=filter", "filter.min_similarity=null", "filter.sample=100"])
