"""Vectors of fewer bits and numbers, against sentence-transformers' own functions; two ranks are in stage/test_export.py."""

import numpy as np
import pytest
from sentence_transformers.quantization import quantize_embeddings, semantic_search_faiss

from bgetrain.search import quantised, shards
from bgetrain.search.exact import exact
from bgetrain.search.shards import held


def unit(seed: int, rows: int, width: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


def test_int8_and_bits_are_those_of_sentence_transformers(world):
    rows, others = unit(0, 300, 20), 2 * unit(1, 50, 20)  # some of which lie beyond the ranges
    ranges = quantised.ranges_of(held(rows, world), world)
    np.testing.assert_array_equal(ranges, np.stack([rows.min(0), rows.max(0)]))
    for each in (rows, others):
        np.testing.assert_array_equal(quantised.to_int8(each, ranges), quantize_embeddings(each, "int8", ranges=ranges))
        np.testing.assert_array_equal(quantised.to_binary(each), quantize_embeddings(each, "ubinary"))
    again = quantised.from_int8(quantised.to_int8(rows, ranges), ranges)
    assert np.abs(again - rows).max() <= (ranges[1] - ranges[0]).max() / 255 * 1.001
    assert quantised.num_bytes("binary", 20) == quantised.to_binary(rows).shape[1] == 3
    assert [quantised.num_bytes(kind, 20) for kind in ("fp32", "int8")] == [80, 20]


def test_a_number_that_never_changes_is_no_division_by_zero(world):
    rows = np.zeros((4, 3), np.float32)
    ranges = quantised.ranges_of(held(rows, world), world)
    np.testing.assert_array_equal(quantised.from_int8(quantised.to_int8(rows, ranges), ranges), rows)
    assert np.isfinite(quantised.shortened(held(rows, world), 2).take([0, 3])).all()


def search(world, rescore: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores by bits alone, places after scoring anew."""
    queries, passages = held(unit(2, 9, 64), world), held(unit(3, 100, 64), world)
    bits = [quantised.changed(each, quantised.signs, 64) for each in (queries, passages)]
    found = exact(*bits, 10 * rescore, query_block=4, passage_block=8, world=world, advance=lambda _: None)
    again = quantised.rescored(found, queries, bits[1], 10, world)
    return found.scores, again.places


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 16)


def test_bits_are_searched_by_hamming_distance_and_scored_anew_as_sentence_transformers_does(world, blocks):
    scores, places = search(world, 10)  # all 100 are scored anew, so that ties at the edge decide nothing
    queries, passages = unit(2, 9, 64), unit(3, 100, 64)
    distances = ((queries[:, None] > 0) != (passages[None] > 0)).sum(2)
    np.testing.assert_array_equal(scores, np.sort(64 - 2 * distances, axis=1)[:, ::-1])
    corpus = quantize_embeddings(passages, "ubinary")
    theirs, _ = semantic_search_faiss(queries, corpus, corpus_precision="ubinary", top_k=10, rescore_multiplier=10)
    np.testing.assert_array_equal(places, [[each["corpus_id"] for each in row] for row in theirs])


def test_only_what_bits_have_found_is_scored_anew(world, blocks):
    _, few = search(world, 1)
    queries, passages = unit(2, 9, 64), unit(3, 100, 64)
    distances = ((queries[:, None] > 0) != (passages[None] > 0)).sum(2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(np.sort(few, axis=1), np.sort(nearest, axis=1))
    exact_scores = np.take_along_axis(queries @ np.where(passages > 0, 1, -1).T.astype(np.float32), few, axis=1)
    assert (np.diff(exact_scores, axis=1) <= 1e-6).all()


def test_a_shortened_row_is_the_first_numbers_at_length_one(world):
    rows = unit(4, 5, 6)
    found = quantised.shortened(held(rows, world), 3)
    assert (found.width, found.total) == (3, 5)
    expected = rows[:, :3] / np.linalg.norm(rows[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(found.take(range(5)), expected, rtol=1e-6)
