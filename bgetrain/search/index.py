"""Search by faiss, queries and passages shared out over ranks; the only import of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bgetrain.distributed import from_rank, gather_arrays, gather_to
from bgetrain.search import shards
from bgetrain.search.blocks import Find, Ranked, by_blocks, checked
from bgetrain.search.exact import nearest
from bgetrain.search.shards import Embeddings, blocks_of, held, part_of
from bgetrain.types import NonNegativeInt, PositiveInt, World

GPU_MAX_K = 2048  # results per query; faiss/gpu/utils/DeviceDefs.cuh
POINTS = 64  # passages for each inverted list that the lists' centres are learnt from; faiss warns below 39
ROUNDS = 10  # of k-means; faiss's own default for inverted lists


def flat(
    queries: Embeddings,
    passages: Embeddings,
    k: int,
    *,
    query_block: PositiveInt,
    world: World,
    advance: Callable[[int], None],
) -> Ranked:
    """Finds the k passages of the largest inner product with each query by faiss's IndexFlatIP, on GPUs where it sees them.

    Each rank's index holds the rank's passages, on its GPU if there is one. Of passages of equal score that straddle the k-th
    place it is faiss that chooses; else as `exact.exact`.

    Args:
        query_block: queries that all ranks work on at a time.
        others: as for `exact.exact`.

    Raises:
        ValueError: as `exact.exact`; k is more than faiss selects on a GPU; faiss is not installed.
    """
    k = checked(queries, passages, k)
    index = library().IndexFlatIP(passages.width)
    fill(index, passages)
    return by_blocks(asked(index, passages, k, world, advance), queries, k, query_block, world)


def ivf(
    queries: Embeddings,
    passages: Embeddings,
    k: int,
    *,
    num_lists: PositiveInt | None,
    num_probes: PositiveInt,
    recall_sample: PositiveInt,
    query_block: PositiveInt,
    seed: NonNegativeInt,
    world: World,
    advance: Callable[[int], None],
) -> Ranked:
    """Finds most of the k passages of the largest inner product with each query, by faiss's inverted lists.

    The lists' centres are learnt from a sample of the whole corpus and are the same on every rank; each rank's lists hold the
    rank's passages, in memory.

    Args:
        num_lists: inverted lists; None: the square root of C.
        num_probes: lists looked into for each query; with all of them the search is exact.
        recall_sample: queries that are searched exactly as well, to measure the recall.
        query_block: queries that all ranks work on at a time.
        seed: of the sample of the corpus, of the centres and of the sample of queries.
        others: as for `exact.exact`.

    Raises:
        ValueError: as `flat`.
    """
    k = checked(queries, passages, k)
    lists = min(num_lists or round(passages.total**0.5), passages.total)
    index = inverted(passages, lists, num_probes, seed, world)
    found = by_blocks(asked(index, passages, k, world, advance), queries, k, query_block, world)

    def compare(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return nearest(vectors, passages, k, passage_block=shards.BLOCK, device=world.device, advance=lambda _: None)

    return found._replace(
        recall=recall_of(found, compare, queries, sample(queries.total, recall_sample, seed), query_block, world)
    )


def sample(total: int, number: int, seed: int) -> np.ndarray:
    """int64, rising: `number` of 0 ... total - 1, or all."""
    return np.sort(np.random.default_rng(seed).choice(total, min(number, total), replace=False))


def fill(index: Any, passages: Embeddings) -> None:
    """Puts this rank's passages into a faiss index."""
    for number in blocks_of(passages.part):
        index.add(passages.load(number))


def inverted(passages: Embeddings, num_lists: int, num_probes: int, seed: int, world: World) -> Any:
    """A faiss index of this rank's passages in inverted lists, whose centres are those of the whole corpus."""
    faiss = library()
    centres = np.empty((num_lists, passages.width), np.float32)
    points = gathered(passages, sample(passages.total, POINTS * num_lists, seed), world)
    if points is not None:
        means = faiss.Kmeans(
            passages.width,
            num_lists,
            niter=ROUNDS,
            spherical=True,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=POINTS,
        )
        means.train(points)
        centres = means.centroids
    quantizer = faiss.IndexFlatIP(passages.width)
    quantizer.add(from_rank(centres, 0, world))
    index = faiss.IndexIVFFlat(quantizer, passages.width, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.is_trained, index.nprobe = True, min(num_probes, num_lists)
    fill(index, passages)
    return index


def gathered(embeddings: Embeddings, chosen: np.ndarray, world: World) -> np.ndarray | None:
    """fp32 [n, D] on rank 0, the rows `chosen`, which rise; None elsewhere."""
    parts = [part_of(embeddings.total, world._replace(rank=rank)) for rank in range(world.size)]
    each = [chosen[(chosen >= part.start) & (chosen < part.stop)] for part in parts]
    padded = np.zeros((max(map(len, each)), embeddings.width), np.float32)
    padded[: len(each[world.rank])] = embeddings.take(each[world.rank])
    found = gather_to(padded, 0, world)
    return None if found is None else np.concatenate([rows[: len(own)] for rows, own in zip(found, each, strict=True)])


def asked(index: Any, passages: Embeddings, k: int, world: World, advance: Callable[[int], None]) -> Find:
    """How a faiss index of this rank's passages is asked, on the rank's GPU where faiss sees it.

    Raises:
        ValueError: k is more than faiss selects on a GPU.
    """
    faiss = library()
    if world.device.type == "cuda" and faiss.get_num_gpus():
        if k > GPU_MAX_K:
            raise ValueError(
                f"{k} passages for each query are more than the {GPU_MAX_K} that faiss finds on a GPU: use search=exact"
            )
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), world.device.index or 0, index)

    def find(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(torch.get_num_threads())
        scores, places = index.search(vectors, k)
        faiss.omp_set_num_threads(before)
        advance(len(vectors) * passages.total)
        scores = np.where(places < 0, -np.inf, scores).astype(np.float32)
        order = np.lexsort((places, -scores), axis=1)
        places = np.where(places < 0, -1, places + passages.part.start)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(places, order, axis=1)

    return find


def recall_of(found: Ranked, compare: Find, queries: Embeddings, chosen: np.ndarray, query_block: int, world: World) -> float:
    """The share of what exact search finds for the queries `chosen`, which rise, that `found` has too."""
    here = chosen[(chosen >= queries.part.start) & (chosen < queries.part.stop)]
    asked = held(gather_arrays(queries.take(here), world), world)
    truth = gather_arrays(by_blocks(compare, asked, found.places.shape[1], query_block, world).places, world)
    own = chosen[(chosen >= found.queries.start) & (chosen < found.queries.stop)] - found.queries.start
    ours = gather_arrays(found.places[own], world)
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(truth, ours, strict=True)] or [1.0]))


def library() -> Any:
    """faiss.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "search=ivf and search=flat need faiss, which is not installed: pip install bgetrain[cpu] (or bgetrain[gpu])"
        ) from error
    return faiss
