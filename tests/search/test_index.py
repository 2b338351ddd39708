"""Exact search against a comparison of everything with everything."""

import faiss
import numpy as np
import pytest

from bgetrain.search import index
from bgetrain.search.index import top_k


def brute_force(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    positions = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, positions, axis=1), positions


def embeddings(rows: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def whole(rows: int, width: int, seed: int) -> np.ndarray:
    """Embeddings of small whole numbers: their inner products are exact in fp32, and many are equal."""
    return np.random.default_rng(seed).integers(-1, 2, (rows, width)).astype(np.float32)


@pytest.mark.parametrize(("num_queries", "num_passages", "k"), [(1, 7, 1), (3, 50, 10), (40, 3000, 200), (40, 30, 30)])
def test_top_k_equals_brute_force(num_queries, num_passages, k):
    queries, corpus = embeddings(num_queries, 24, 1), embeddings(num_passages, 24, 2)
    scores, positions = top_k(queries, corpus, k, num_threads=1)
    expected_scores, expected_positions = brute_force(queries, corpus, k)
    np.testing.assert_array_equal(positions, expected_positions)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-5)
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("k", [1, 5, 60, 150, 900, 1000])
@pytest.mark.parametrize("num_queries", [3, 40])  # faiss computes fewer than 20 queries in another way
def test_equal_scores_come_by_position_also_across_the_cut(num_queries, k):
    queries, corpus = whole(num_queries, 4, 3), whole(1000, 4, 4)
    scores, positions = top_k(queries, corpus, k, num_threads=2)
    expected_scores, expected_positions = brute_force(queries, corpus, k)
    np.testing.assert_array_equal(positions, expected_positions)
    np.testing.assert_array_equal(scores, expected_scores)


def test_blocks_of_tied_queries_change_nothing(monkeypatch):
    queries, corpus = whole(30, 3, 5), whole(400, 3, 6)
    expected = top_k(queries, corpus, 20, num_threads=1)
    monkeypatch.setattr(index, "BLOCK", 50)
    for one, other in zip(expected, top_k(queries, corpus, 20, num_threads=1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_queries_without_a_tie_are_searched_once(monkeypatch):
    calls, search = [], faiss.knn
    monkeypatch.setattr(faiss, "knn", lambda queries, *rest, **named: calls.append(1) or search(queries, *rest, **named))
    top_k(embeddings(5, 24, 1), embeddings(500, 24, 2), 10, num_threads=1)
    assert len(calls) == 1


def test_k_beyond_the_corpus_is_cut():
    scores, positions = top_k(embeddings(2, 8, 1), embeddings(5, 8, 2), 100, num_threads=1)
    assert scores.shape == positions.shape == (2, 5)
    assert sorted(positions[0]) == [0, 1, 2, 3, 4]


def test_no_queries_give_no_rows():
    scores, positions = top_k(np.empty((0, 8), np.float32), embeddings(5, 8, 2), 3, num_threads=1)
    assert scores.shape == positions.shape == (0, 3)


def test_threads_of_the_process_are_as_before():
    before = faiss.omp_get_max_threads()
    top_k(embeddings(2, 8, 1), embeddings(5, 8, 2), 3, num_threads=before + 1)
    assert faiss.omp_get_max_threads() == before


def test_gpus_are_searched_where_faiss_sees_them_and_k_fits(monkeypatch):
    """A CPU index stands in for the GPUs: what is held is which of the two paths is taken, not what a GPU answers."""
    built, asked = [], []

    class Shards:
        def __init__(self, index):
            self.add = index.add
            self.search = lambda queries, k: asked.append(k) or index.search(queries, k)

    def shards(empty, options):
        built.append(options.shard)
        return Shards(empty)

    class Options:
        shard = False

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", Options, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", shards)
    queries, corpus = embeddings(3, 8, 1), embeddings(3000, 8, 2)
    for k in (10, 2900):
        np.testing.assert_array_equal(top_k(queries, corpus, k, num_threads=1)[1], brute_force(queries, corpus, k)[1])
    assert built == [True, True]
    assert asked == [11]  # the place after the k-th shows whether it is tied; 2,901 is more than a GPU selects


@pytest.mark.parametrize(
    ("queries", "corpus", "k", "message"),
    [
        (np.ones((2, 8)), np.ones((0, 8)), 1, "no passages"),
        (np.ones((2, 8)), np.ones((5, 9)), 1, r"\(2, 8\) and corpus \(5, 9\)"),
        (np.ones(8), np.ones((5, 8)), 1, r"queries \(8,\)"),
        (np.ones((2, 8)), np.ones((5, 8)), 0, "k=0: must be"),
        (np.ones((2, 8)), np.array([[1.0], [np.nan], [np.inf]]).repeat(8, 1), 1, "corpus: 2 of 3 .* first 1"),
        (np.full((2, 8), np.nan), np.ones((5, 8)), 1, "queries: 2 of 2"),
    ],
)
def test_bad_arrays_are_refused(queries, corpus, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(queries.astype(np.float32), corpus.astype(np.float32), k, num_threads=1)
