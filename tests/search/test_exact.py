"""Exact search against a comparison of everything with everything in float64, on one, two and four ranks."""

import tracemalloc

import numpy as np
import pytest
import torch

from bgetrain.search import exact as module
from bgetrain.search import shards
from bgetrain.search.blocks import Ranked
from bgetrain.search.shards import held
from bgetrain.types import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def brute_force(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, places, axis=1), places


def embeddings(rows: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def whole(rows: int, width: int, seed: int) -> np.ndarray:
    """Embeddings of small whole numbers: their inner products are exact in fp32, and many are equal."""
    return np.random.default_rng(seed).integers(-1, 2, (rows, width)).astype(np.float32)


def search(queries, corpus, k, world=ALONE, query_block=16, passage_block=4096, told=lambda _: None) -> Ranked:
    return module.exact(
        held(queries, world),
        held(corpus, world),
        k,
        query_block=query_block,
        passage_block=passage_block,
        world=world,
        advance=told,
    )


@pytest.mark.parametrize(
    ("num_queries", "num_passages", "k"), [(1, 7, 1), (3, 50, 10), (40, 3000, 200), (40, 30, 30), (5, 9000, 9)]
)
def test_the_best_are_those_of_brute_force(num_queries, num_passages, k):
    queries, corpus = embeddings(num_queries, 24, 1), embeddings(num_passages, 24, 2)
    told: list[int] = []
    found = search(queries, corpus, k, told=told.append)
    scores, places = brute_force(queries, corpus, k)
    np.testing.assert_array_equal(found.places, places)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-5)
    assert (found.queries, found.recall) == (range(num_queries), None)
    assert (found.scores.dtype, found.places.dtype) == (np.float32, np.int64)
    assert sum(told) == num_queries * num_passages


@pytest.mark.parametrize("k", [1, 5, 60, 150, 900, 1000])
def test_equal_scores_come_by_position_also_across_the_cut_and_across_blocks(monkeypatch, k):
    queries, corpus = whole(40, 4, 3), whole(1000, 4, 4)
    scores, places = brute_force(queries, corpus, k)
    for block, query_block, passage_block in ((4096, 64, 4096), (100, 7, 4096), (64, 5, 10), (7, 40, 1)):
        monkeypatch.setattr(shards, "BLOCK", block)
        found = search(queries, corpus, k, query_block=query_block, passage_block=passage_block)
        np.testing.assert_array_equal(found.places, places)
        np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("order", [1, -1])
def test_passages_in_order_of_their_scores_are_found_too(monkeypatch, order):
    """Rising scores make every passage a candidate, falling ones none after the first."""
    monkeypatch.setattr(shards, "BLOCK", 50)
    corpus = np.linspace(-1, 1, 500, dtype=np.float32)[::order, None] * np.ones((1, 2), np.float32)
    queries = np.array([[1, 1], [-1, -1], [0, 0]], np.float32)
    found = search(queries, corpus, 70)
    np.testing.assert_array_equal(found.places, brute_force(queries, corpus, 70)[1])


def test_k_beyond_the_corpus_is_cut():
    found = search(embeddings(2, 8, 1), embeddings(5, 8, 2), 100)
    assert found.scores.shape == found.places.shape == (2, 5)
    assert sorted(found.places[0]) == [0, 1, 2, 3, 4]


def test_no_queries_give_no_rows():
    found = search(np.empty((0, 8), np.float32), embeddings(5, 8, 2), 3)
    assert found.scores.shape == found.places.shape == (0, 3)


@pytest.mark.parametrize(
    ("queries", "corpus", "k", "message"),
    [
        (np.ones((2, 8)), np.ones((0, 8)), 1, "no passages"),
        (np.ones((2, 8)), np.ones((5, 9)), 1, "queries of width 8 and passages of width 9"),
        (np.ones((2, 8)), np.ones((5, 8)), 0, "k=0: must be"),
    ],
)
def test_what_cannot_be_searched_is_refused(queries, corpus, k, message):
    with pytest.raises(ValueError, match=message):
        search(queries, corpus, k)


def test_memory_is_bounded_by_the_two_blocks_whatever_the_corpus(monkeypatch, tmp_path):
    """8,192 and 131,072 mapped passages of width 64 (2 and 34 MB): the second takes no more, and no product is larger."""
    made: list[torch.Size] = []
    offer = module.offer
    monkeypatch.setattr(module, "offer", lambda best, scores, *more: made.append(scores.shape) or offer(best, scores, *more))
    draw = np.random.default_rng(0)
    np.save(tmp_path / "corpus.npy", draw.standard_normal((131_072, 64), dtype=np.float32))
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="c")
    queries = draw.standard_normal((128, 64), dtype=np.float32)
    peaks = []
    for total in (8192, 131_072):
        tracemalloc.start()
        search(queries, mapped[:total], 20, query_block=64, passage_block=512)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert set(made) == {torch.Size([64, 512])}
    assert peaks[1] < 1.5 * peaks[0] < 3_000_000


CASES = [
    (30, 900, 4, 50, "whole"),
    (30, 900, 24, 50, "any"),
    (3, 40, 4, 40, "whole"),
    (1, 3, 4, 2, "whole"),
    (0, 50, 4, 5, "any"),
]


def case(num_queries: int, num_passages: int, width: int, k: int, kind: str) -> tuple[np.ndarray, np.ndarray, int]:
    make = whole if kind == "whole" else embeddings
    return make(num_queries, width, 3), make(num_passages, width, 4), k


def on_ranks(world) -> list:
    shards.BLOCK = 64
    results = []
    for each in CASES:
        queries, corpus, k = case(*each)
        found = search(queries, corpus, k, world, query_block=8, passage_block=20)
        results.append(found)
    return results


@pytest.fixture(scope="module")
def on_one_rank():
    before = shards.BLOCK
    found = on_ranks(ALONE)
    shards.BLOCK = before
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_finds_the_same_bits(spawn, on_one_rank, size):
    results = spawn(size, on_ranks)
    for number, each in enumerate(CASES):
        parts: list[Ranked] = [result[number] for result in results]
        assert [query for part in parts for query in part.queries] == list(range(each[0]))
        one = on_one_rank[number]
        np.testing.assert_array_equal(np.concatenate([part.places for part in parts]), one.places)
        np.testing.assert_array_equal(np.concatenate([part.scores for part in parts]), one.scores)
        np.testing.assert_array_equal(one.places, brute_force(*case(*each))[1])
