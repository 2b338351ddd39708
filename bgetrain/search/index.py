"""Exact search for the passages nearest to each query; the only import of faiss."""

import numpy as np

try:
    import faiss
except ImportError as error:
    raise ValueError("search needs faiss, which is not installed: pip install bgetrain[cpu] (or bgetrain[gpu])") from error

# faiss/gpu/utils/DeviceDefs.cuh: the most results per query that its GPU kernels select
GPU_MAX_K = 2048
BLOCK = 1 << 24  # scores held at once where ties are looked into: 200 MB with their positions
WIDEN = 8  # how much further a tie is followed at each attempt


def top_k(queries: np.ndarray, corpus: np.ndarray, k: int, *, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k passages of the largest inner product with each query, by comparing all.

    Passages whose fp32 scores are equal come in the order of their positions, and where they straddle the k-th place
    the lower positions are kept: the result is a function of the scores alone. Runs on every GPU that faiss sees, each
    with a share of the corpus, else on the CPU.

    Args:
        queries: fp32 [Q, D].
        corpus: fp32 [C, D].
        k: results per query; cut to C.
        num_threads: OpenMP threads of faiss during the search.

    Returns:
        scores: fp32 [Q, k], falling along each row.
        positions: int64 [Q, k], 0 <= position < C.

    Raises:
        ValueError: the corpus is empty, the widths differ, k or num_threads is below 1, or an embedding is not finite.
    """
    _check(queries, corpus, k, num_threads)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    corpus = np.ascontiguousarray(corpus, dtype=np.float32)
    threads_before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads)
    try:
        search = _searcher(corpus)
        return _search_with_ties(search, queries, min(k, len(corpus)), len(corpus))
    finally:
        faiss.omp_set_num_threads(threads_before)


def _check(queries: np.ndarray, corpus: np.ndarray, k: int, num_threads: int) -> None:
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries {queries.shape} and corpus {corpus.shape} must be [Q, D] and [C, D] of one width D")
    if not len(corpus):
        raise ValueError("corpus has no passages: there is nothing to search")
    for name, value in (("k", k), ("num_threads", num_threads)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be a whole number above 0")
    for name, embeddings in (("queries", queries), ("corpus", corpus)):
        # faiss drops NaN silently; a sum is not finite where a term is not, and needs no mask as large as the corpus
        bad = np.flatnonzero(~np.isfinite(embeddings.sum(axis=1)))
        if len(bad):
            raise ValueError(f"{name}: {len(bad)} of {len(embeddings)} embeddings are not finite, first {bad[0]}")


def _searcher(corpus: np.ndarray):
    """Returns search(queries, k) -> scores, positions, in faiss's order of ties."""

    def on_cpu(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        # no index: IndexFlatIP would hold a second copy of the corpus
        return faiss.knn(queries, corpus, k, metric=faiss.METRIC_INNER_PRODUCT)

    if not faiss.get_num_gpus():
        return on_cpu
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(corpus.shape[1]), options)
    index.add(corpus)

    def on_gpus(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return index.search(queries, k) if k <= GPU_MAX_K else on_cpu(queries, k)

    return on_gpus


def _search_with_ties(search, queries: np.ndarray, k: int, num_passages: int) -> tuple[np.ndarray, np.ndarray]:
    """Searches one place further than k, and further still for the queries whose k-th place is tied."""
    scores = np.empty((len(queries), k), np.float32)
    positions = np.empty((len(queries), k), np.int64)
    open_rows, reach = np.arange(len(queries)), min(k + 1, num_passages)
    while len(open_rows):
        still_open = []
        block = max(1, BLOCK // reach)
        for rows in (open_rows[start : start + block] for start in range(0, len(open_rows), block)):
            found_scores, found_positions = _in_order(*search(queries[rows], reach))  # [block, reach]
            scores[rows], positions[rows] = found_scores[:, :k], found_positions[:, :k]
            if reach < num_passages:
                # a tie that reaches the last place seen may go on behind it, at lower positions
                still_open.append(rows[found_scores[:, k - 1] == found_scores[:, -1]])
        open_rows = np.concatenate(still_open) if still_open else np.empty(0, np.int64)
        reach = min(reach * WIDEN, num_passages)
    return scores, positions


def _in_order(scores: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orders each row by score, falling, then by position."""
    order = np.lexsort((positions, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)
