"""faiss's searches: flat against exact, inverted lists with the recall that they report."""

import sys

import faiss
import numpy as np
import pytest
import torch

from bgetrain.search import index, shards
from bgetrain.search.blocks import Ranked
from bgetrain.search.exact import exact
from bgetrain.search.shards import held
from bgetrain.types import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def embeddings(rows: int, width: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


QUERIES, CORPUS = embeddings(60, 16, 1), embeddings(3000, 16, 2)


def flat(k: int, world=ALONE, told=lambda _: None) -> Ranked:
    return index.flat(held(QUERIES, world), held(CORPUS, world), k, query_block=25, world=world, advance=told)


def ivf(k: int, num_probes: int, world=ALONE, *, num_lists=None, seed=0) -> Ranked:
    return index.ivf(
        held(QUERIES, world), held(CORPUS, world), k, num_lists=num_lists, num_probes=num_probes, recall_sample=40,
        query_block=25, seed=seed, world=world, advance=lambda _: None,
    )  # fmt: skip


def truth(k: int) -> np.ndarray:
    alone = held(QUERIES, ALONE), held(CORPUS, ALONE)
    return exact(*alone, k, query_block=1024, passage_block=4096, world=ALONE, advance=lambda _: None).places


@pytest.mark.parametrize("k", [1, 100, 4000])
def test_flat_finds_what_exact_finds(k):
    told: list[int] = []
    found = flat(k, told=told.append)
    np.testing.assert_array_equal(found.places[:, :100], truth(k)[:, :100])
    assert found.recall is None
    assert sum(told) == len(QUERIES) * len(CORPUS)


def recall_by_hand(found: Ranked, k: int) -> np.ndarray:
    return np.array([len(set(one) & set(other)) / k for one, other in zip(truth(k).tolist(), found.places.tolist(), strict=True)])


def test_the_recall_of_inverted_lists_is_that_of_a_sample_of_queries():
    few, more, everything = (ivf(10, num_probes) for num_probes in (2, 10, 1000))
    assert 0.05 < few.recall < more.recall < everything.recall == 1.0
    np.testing.assert_array_equal(everything.places, truth(10))
    chosen = index.sample(60, 40, 0)
    assert len(set(chosen.tolist())) == 40
    for found in (few, more):
        assert found.recall == pytest.approx(recall_by_hand(found, 10)[chosen].mean(), abs=1e-12)
    assert (np.diff(few.scores, axis=1) <= 0).all()
    assert ivf(10, 2, seed=1).places.tolist() != few.places.tolist()  # other centres


def test_places_that_lists_do_not_have_are_minus_one():
    found = ivf(200, 1, num_lists=55)
    assert found.places.min() == -1
    assert (np.isneginf(found.scores) == (found.places == -1)).all()
    assert (found.places[:, 0] >= 0).all()
    each = [row[row >= 0] for row in found.places]
    assert all(len(set(row.tolist())) == len(row) for row in each)


def test_threads_of_the_process_are_as_before():
    before = faiss.omp_get_max_threads()
    flat(3)
    assert faiss.omp_get_max_threads() == before


def test_the_rank_s_gpu_is_asked_where_faiss_sees_it_and_k_fits(monkeypatch):
    """A CPU index stands in for the GPU: what is held is which path is taken, not what a GPU answers."""
    moved = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda _, number, made: moved.append(number) or made, raising=False)
    second = ALONE._replace(device=torch.device("cuda", 1))
    np.testing.assert_array_equal(flat(10, second).places, truth(10))
    assert moved == [1]
    with pytest.raises(ValueError, match=r"^2500 passages for each query are more than the 2048 .* on a GPU: use search=exact$"):
        flat(2500, second)


def test_without_faiss_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"search=flat need faiss, which is not installed: pip install bgetrain\[cpu\]"):
        flat(3)
    assert truth(3).shape == (60, 3)


def on_ranks(world) -> list[Ranked]:
    shards.BLOCK = 256
    return [flat(20, world), ivf(20, 5, world)]


def test_ranks_search_the_lists_of_one(spawn):
    before = shards.BLOCK
    alone = on_ranks(ALONE)
    shards.BLOCK = before
    results = spawn(2, on_ranks)
    for number, one in enumerate(alone):
        parts = [result[number] for result in results]
        np.testing.assert_array_equal(np.concatenate([part.places for part in parts]), one.places)
        assert {part.recall for part in parts} == {one.recall}
