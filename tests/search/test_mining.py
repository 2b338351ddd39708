"""Scores of pairs whose query and passage are on different ranks, queries moved into whole blocks, the audit's sample."""

from typing import Any

import numpy as np
import pytest

QUERIES, PASSAGES, WIDTH, BLOCK = 5000, 9000, 7, 64  # more than one block of embeddings, so that each rank has some


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, passages, and six places for each query, some of them missing."""
    random = np.random.default_rng(1)
    queries, passages = (random.standard_normal((rows, WIDTH)).astype(np.float32) for rows in (QUERIES, PASSAGES))
    places = random.integers(0, PASSAGES, (QUERIES, 6))
    places[random.random(places.shape) < 0.3] = -1
    return queries, passages, places


def on_ranks(world) -> dict[str, Any]:
    from bgetrain.distributed import max_over_ranks, share
    from bgetrain.search.blocks import Ranked
    from bgetrain.search.mining import in_whole_blocks
    from bgetrain.search.rescore import model_score
    from bgetrain.search.shards import held

    queries, passages, places = drawn()
    part = share(QUERIES, world)
    numbers = np.arange(QUERIES)[part.start : part.stop, None] * np.ones((1, 6))
    found = Ranked(part, numbers.astype(np.float32), places[part.start : part.stop], None)
    moved = in_whole_blocks(found, QUERIES, BLOCK, world)
    score = model_score(held(queries, world), held(passages, world), world)
    scores = []
    for block in range(max_over_ranks(-(-len(moved.queries) // BLOCK), world)):
        at = slice(block * BLOCK, (block + 1) * BLOCK)
        scores.append(score(moved.queries[at], moved.places[at]))  # ranks with fewer blocks ask for nothing
    held_few = np.zeros((len(share(3, world)), 1), np.float32)
    few = in_whole_blocks(Ranked(share(3, world), held_few, held_few.astype(np.int64), None), 3, BLOCK, world)
    return {"moved": moved, "scores": np.concatenate(scores), "few": few.queries}


@pytest.mark.parametrize("size", [1, 3])
def test_pairs_on_different_ranks_score_as_plain_products_and_queries_stand_in_whole_blocks(spawn, size):
    queries, passages, places = drawn()
    found = spawn(size, on_ranks)
    moved = [rank["moved"] for rank in found]
    assert [number for each in moved for number in each.queries] == list(range(QUERIES))
    assert all(each.queries.start % BLOCK == 0 for each in moved)
    assert all(len(each.queries) > 0 for each in moved)
    np.testing.assert_array_equal(np.concatenate([each.places for each in moved]), places)
    np.testing.assert_array_equal(np.concatenate([each.scores for each in moved])[:, 0], np.arange(QUERIES))
    plain = np.einsum("qd,qkd->qk", queries.astype(float), passages[places].astype(float))
    np.testing.assert_allclose(
        np.concatenate([rank["scores"] for rank in found]), np.where(places < 0, 0, plain), rtol=1e-13, atol=1e-13
    )
    assert sorted(number for rank in found for number in rank["few"]) == [0, 1, 2]  # one block: one rank has all of it


def test_the_audit_s_sample_is_the_same_however_queries_are_shared_out(monkeypatch):
    from bgetrain.search import audit as auditing

    monkeypatch.setattr(auditing, "SAMPLE", 50)
    random = np.random.default_rng(0)
    scores = random.random((1000, 3))
    mined = [
        auditing.Mined(
            f"q{n}",
            {"query": f"text {n}", "pos": ["p"], "neg": ["n", "m"]},
            scores[n, :1].tolist(),
            scores[n, 1:].tolist(),
            [10 + n, auditing.OWN],
        )
        for n in range(1000)
    ]

    def split(edges: list[int]) -> auditing.Audit:
        dumped = []
        for first, last in zip([0, *edges], [*edges, 1000], strict=True):
            part = auditing.Audit(7)
            for each in mined[first:last]:
                part.add(each, 1 + (int(each.name[1:]) < 30))
            part.add_counts({"candidates": 3 * (last - first)}, {"positive": last - first})
            dumped.append(part.dump())
        return auditing.merge(dumped, 7)

    whole = split([])
    assert len(whole.sample) == 50
    assert len(whole.examples) == 20
    chosen = {name for _, name, _ in whole.sample}
    assert chosen != {f"q{n}" for n in range(50)}
    for other in (split([333, 400]), split([1, 2, 999])):
        assert auditing.figures(other) == auditing.figures(whole)
        assert auditing.examples(other) == auditing.examples(whole)
    figures = auditing.figures(whole)
    assert (figures["rows"], figures["negatives_per_row"], figures["rows_short_of_negatives"]) == (1000, 2.0, 30)
    assert figures["audit"]["own_negatives_kept"] == 1000
    assert figures["audit"]["dropped_ratio"] == {"positive": 1 / 3}
    values = [scores[int(name[1:]), 0] for name in chosen]
    assert figures["audit"]["scores"]["positives"]["p50"] == pytest.approx(np.median(values), abs=1e-6)


def test_long_texts_are_cut_and_kept_on_one_line_in_the_examples():
    from bgetrain.search.audit import shown

    assert shown("a\nb  c") == "a b c"
    assert shown("x" * 301) == "x" * 300 + " ..."
