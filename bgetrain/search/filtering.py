"""Which pairs a scorer believes: by how similar they are, and by where the positive comes back among a pool of passages.

Letters: M pairs, a query with one of its positives; C passages of a pool. Others: types.py.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from bgetrain.sources import Row
from bgetrain.types import PositiveInt

ROUNDING = 1e-6  # of a cosine of fp32 unit rows, added up in another order: what is nearer by less is a tie
DIGITS = 4  # of a similarity as it is compared and written: rounding in another order of addition is 1e-7, in bf16 1e-3
BLOCK = 4096  # queries scored together: with a shard of 8,192 passages 130 MB


class Rules(NamedTuple):
    """What a pair must meet to be kept, and how rows are gone through; `rules` says what each is."""

    min_similarity: float | None
    top_k: int | None
    pool: int
    query_instruction: str
    passage_instruction: str
    sample: int | None
    rows_per_part: int


class Pool(NamedTuple):
    """Passages that the positives are ranked among.

    Attributes:
        shards: fp32 [c, D] each, C passages in all; may be memory-mapped.
        keys: int64 [U], hashes of the distinct texts, rising.
        places: int64 [U], where each of these texts first stands.
    """

    shards: Sequence[np.ndarray]
    keys: np.ndarray
    places: np.ndarray


def rules(
    *,
    min_similarity: float | None,
    top_k: PositiveInt | None,
    pool: PositiveInt,
    query_instruction: str,
    passage_instruction: str,
    sample: PositiveInt | None,
    rows_per_part: PositiveInt,
) -> Rules:
    """States when a pair is kept.

    Args:
        min_similarity: least cosine of query and positive, -1 to 1; C-Pack (arXiv:2309.07597) has 0.43 under
            text2vec-base-chinese. None: any will do.
        top_k: the positive must be among this many when it is ranked with the pool; E5 (arXiv:2212.03533) has 2 and a
            pool of a million. None: no ranking.
        pool: passages drawn from the same source by seed, all of them where there are fewer.
        query_instruction: what the scorer wants before a query; the rows' own prompts are for the model to be trained.
        passage_instruction: the same before a passage.
        sample: score this many rows, drawn by seed, and keep or drop none, to choose the numbers above; None: all rows.
        rows_per_part: rows that one rank scores together and one file holds.
    """
    return Rules(min_similarity, top_k, pool, query_instruction, passage_instruction, sample, rows_per_part)


def spread(total: int, wanted: int, hashes: np.ndarray) -> np.ndarray:
    """Draws one place from each of `wanted` equal stretches of `total`: distinct, rising, in memory of what is wanted.

    Args:
        total: places to draw from.
        wanted: how many; `total` of them where it is not below.
        hashes: uint64 [min(wanted, total)], random.

    Returns:
        int64 [min(wanted, total)].
    """
    count = min(wanted, total)
    edges = np.arange(count + 1) * total // max(1, count)
    widths = np.diff(edges).astype(np.uint64)
    return edges[:-1] + (hashes % widths).astype(np.int64)


def pooled(shards: Sequence[np.ndarray], keys: np.ndarray) -> Pool:
    """A pool from embeddings and the hashes of their texts, int64 [C]; a text that stands there again counts once."""
    distinct, places = np.unique(keys, return_index=True)
    return Pool(shards, distinct, places.astype(np.int64))


def similarities(queries: np.ndarray, passages: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Cosine of each pair, rounded to `DIGITS`, so that what is written is what was compared.

    Args:
        queries: fp32 [N, D], unit rows.
        passages: fp32 [M, D], unit rows.
        owners: int64 [M], the query of each passage.

    Returns:
        float64 [M].
    """
    return np.round(np.einsum("md,md->m", queries[owners], passages).astype(np.float64), DIGITS)


def ranks(
    queries: np.ndarray, passages: np.ndarray, owners: np.ndarray, keys: np.ndarray, pool: Pool, device: torch.device
) -> np.ndarray:
    """The rank of each positive among the pool for its query: 1 and the distinct passages that are nearer to the query.

    A passage of the pool that is a positive of the query is not held against it. A score that is
    equal, but for rounding, is no nearer.

    Args:
        queries: fp32 [N, D], unit rows.
        passages: fp32 [M, D], unit rows.
        owners: int64 [M], the query of each passage, rising.
        keys: int64 [M], hashes of the passages' texts.
        pool: C passages.
        device: where the scores are computed.

    Returns:
        int64 [M], from 1 to C + 1.
    """
    at = np.searchsorted(pool.keys, keys).clip(max=len(pool.keys) - 1)
    known = np.flatnonzero(pool.keys[at] == keys)
    own_rows, own_places = owners[known], pool.places[at[known]]  # positives that stand in the pool
    nearer = np.zeros(len(passages), np.int64)
    first = 0
    for shard in pool.shards:
        tile = torch.from_numpy(np.array(shard)).to(device)  # a copy: the file is mapped read-only
        counted = np.isin(np.arange(first, first + len(shard)), pool.places)
        repeats = torch.from_numpy(np.flatnonzero(~counted)).to(device)
        here = (own_places >= first) & (own_places < first + len(shard))
        for start in range(0, len(queries), BLOCK):
            scores = torch.from_numpy(queries[start : start + BLOCK]).to(device) @ tile.T  # [n, c]
            scores[:, repeats] = -torch.inf
            own = here & (own_rows >= start) & (own_rows < start + len(scores))
            scores[torch.from_numpy(own_rows[own] - start), torch.from_numpy(own_places[own] - first)] = -torch.inf
            begin, end = np.searchsorted(owners, [start, start + len(scores)])
            places = torch.from_numpy(owners[begin:end] - start).to(device)
            found = torch.from_numpy(np.einsum("md,md->m", queries[owners[begin:end]], passages[begin:end])).to(device)
            nearer[begin:end] += (scores[places] > found[:, None] + ROUNDING).sum(1).cpu().numpy()
        first += len(shard)
    return nearer + 1


def faults(similarity: np.ndarray, rank: np.ndarray | None, asked: Rules) -> list[str | None]:
    """Of each pair what drops it, "similarity" or "rank"; None: it is kept."""
    found: list[str | None] = [None] * len(similarity)
    for number, value in enumerate(similarity.tolist()):
        if asked.min_similarity is not None and value < asked.min_similarity:
            found[number] = "similarity"
        elif asked.top_k is not None and rank is not None and rank[number] > asked.top_k:
            found[number] = "rank"
    return found


def lines(
    rows: Sequence[Row], similarity: np.ndarray, rank: np.ndarray | None, why: Sequence[str | None], *, kept: bool
) -> list[str]:
    """Rows as JSON, each with those of its positives that were kept, or dropped; without a line where it has none.

    Args:
        rows: N rows that have M positives in all.
        similarity: float64 [M].
        rank: int64 [M]; None: there is no pool.
        why: of each positive what drops it; None: it is kept.
        kept: which of them are wanted.
    """
    found = []
    begin = 0
    for row in rows:
        end = begin + len(row.positives)
        places = [place for place in range(begin, end) if (why[place] is None) == kept]
        if places:
            value: dict[str, Any] = {"query": row.query, "pos": [row.positives[place - begin] for place in places]}
            if row.negatives:
                value["neg"] = list(row.negatives)
            if row.prompt is not None:
                value["prompt"] = row.prompt
            scores, own = [float(similarity[place]) for place in places], row.positive_scores
            value["pos_scores"] = scores if own is None else [own[place - begin] for place in places]
            if row.negative_scores is not None:
                value["neg_scores"] = list(row.negative_scores)
            value["similarity"] = scores
            if rank is not None:
                value["rank"] = [int(rank[place]) for place in places]
            if not kept:
                value["dropped_by"] = [why[place] for place in places]
            found.append(f"{json.dumps(value, ensure_ascii=False)}\n")
        begin = end
    return found
