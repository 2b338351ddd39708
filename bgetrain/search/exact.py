"""The passages of largest inner product, by comparing all, in bounded memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bgetrain.search import shards
from bgetrain.search.blocks import Ranked, by_blocks, checked, first_of
from bgetrain.search.shards import Embeddings, blocks_of
from bgetrain.types import PositiveInt, World


class Best:
    """The K best of what each query has been compared with so far; places must come in rising order.

    Attributes:
        scores: fp32 [n, K], falling along each row; -inf where there have been fewer.
        places: int64 [n, K], rising among equal scores; -1 where there have been fewer.
    """

    def __init__(self, num_queries: int, k: int) -> None:
        self.scores = np.full((num_queries, k), -np.inf, np.float32)
        self.places = np.full((num_queries, k), -1, np.int64)
        self.waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.counts = np.zeros(num_queries, np.int64)  # of each query's candidates that wait

    def add(self, queries: np.ndarray, places: np.ndarray, scores: np.ndarray) -> None:
        """Takes candidates in; all are [m], int64, int64 and fp32, in order of query and then of place."""
        self.waiting.append((queries, places, scores))
        self.counts += np.bincount(queries, minlength=len(self.counts))
        # merging costs a pass over what is kept: not before some query has as many new ones, but at once while some lack K
        if not self.full() or self.counts.max() >= self.places.shape[1]:
            self.merge()

    def full(self) -> bool:
        return bool(self.places[:, -1].min() >= 0)

    def merge(self) -> None:
        """Joins the candidates that wait."""
        if not self.waiting:
            return
        queries, places, scores = (np.concatenate(each) for each in zip(*self.waiting, strict=True))
        order = np.argsort(queries, kind="stable")
        queries, places, scores = queries[order], places[order], scores[order]
        rows = np.flatnonzero(self.counts)
        counts, k = self.counts[rows], self.places.shape[1]
        columns = k + np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = np.repeat(np.arange(len(rows)), counts)
        size = (len(rows), k + int(counts.max()))
        all_scores, all_places = np.full(size, -np.inf, np.float32), np.full(size, -1, np.int64)
        all_scores[:, :k], all_places[:, :k] = self.scores[rows], self.places[rows]
        all_scores[at, columns], all_places[at, columns] = scores, places
        self.scores[rows], self.places[rows] = first_of(all_scores, all_places, k)
        self.waiting, self.counts = [], np.zeros_like(self.counts)


def exact(
    queries: Embeddings,
    passages: Embeddings,
    k: int,
    *,
    query_block: PositiveInt,
    passage_block: PositiveInt,
    world: World,
    advance: Callable[[int], None],
) -> Ranked:
    """Finds the k passages of the largest inner product with each query, by comparing all.

    Each rank compares every query with its own passages, block by block, and keeps the k best; these are then merged where
    the query belongs. What a rank holds does not grow with the corpus (docs/how.md). Passages whose fp32 scores are equal
    come in the order of their positions, and where they straddle the k-th place the lower positions are kept: the result
    is a function of the scores alone, whatever the blocks and the number of ranks.

    Args:
        queries: fp32 [Q, D], finite.
        passages: fp32 [C, D], finite.
        k: results per query; cut to C.
        query_block: queries that all ranks work on at a time.
        passage_block: passages in one product, which takes 5 x query_block x passage_block bytes; above 4,096 it counts as
            that.
        world: all ranks.
        advance: told how many comparisons have been made since it was last told, over all ranks approximately.

    Raises:
        ValueError: the corpus is empty, the widths differ, or k is below 1.
    """
    k = checked(queries, passages, k)

    def find(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def told(count: int) -> None:
            advance(count * len(vectors) * world.size)

        return nearest(vectors, passages, k, passage_block=passage_block, device=world.device, advance=told)

    return by_blocks(find, queries, k, query_block, world)


def nearest(
    queries: np.ndarray,
    passages: Embeddings,
    k: int,
    *,
    passage_block: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Compares queries with all passages of this rank, in fp32.

    Each product is that of all queries and of `passage_block` passages of one block of `Embeddings`, on whichever rank the
    block is: the same numbers for any number of ranks, as far as the library's matrix product is a function of its operands
    and of its number of threads.

    Args:
        queries: fp32 [n, D].
        passages: of which this rank's are compared.
        k: results per query.
        passage_block: passages in a product; what is above `shards.BLOCK` counts as that.
        device: where products are made.
        advance: told how many passages have been compared.

    Returns:
        scores: fp32 [n, k], falling along each row; -inf where this rank has fewer than k.
        places: int64 [n, k], in the whole corpus, rising among equal scores; -1 where this rank has fewer.
    """
    best = Best(len(queries), k)
    if not len(queries):
        return best.scores, best.places
    rows = torch.from_numpy(queries).to(device)
    # used again and again: on a CPU fresh pages cost as much as the products
    size = len(rows) * min(passage_block, shards.BLOCK)
    room, marks = torch.empty(size, device=device), torch.empty(size, dtype=torch.bool, device=device)
    for number in blocks_of(passages.part):
        block = passages.load(number)
        for start in range(0, len(block), passage_block):
            tile = torch.from_numpy(block[start : start + passage_block]).to(device)
            shape = (len(rows), len(tile))
            scores, mask = (each[: shape[0] * shape[1]].view(shape) for each in (room, marks))
            offer(best, torch.mm(rows, tile.T, out=scores), number * shards.BLOCK + start, mask)
        advance(len(block))
    best.merge()
    return best.scores, best.places


def offer(best: Best, scores: Tensor, first: int, mask: Tensor) -> None:
    """Takes in what may be among the best.

    Args:
        best: of n queries.
        scores: fp32 [n, m], of passages that come after all that have been offered.
        first: place of the first of them.
        mask: bool [n, m], to write to.
    """
    k, width = best.scores.shape[1], scores.shape[1]
    full = best.full()
    if full:
        floor = best.scores[:, -1:]
    elif k < width:
        floor = scores.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True).cpu().numpy()
    else:
        floor = np.full((len(scores), 1), -np.inf, np.float32)
    # of what equals the last of K others it stands behind, at a higher place
    if scores.device.type == "cpu":  # numpy compares and looks through the marks in half the time
        marks = (np.greater if full else np.greater_equal)(scores.numpy(), floor, out=mask.numpy())
        flat = np.flatnonzero(marks)
    else:
        (torch.gt if full else torch.ge)(scores, torch.from_numpy(floor).to(scores.device), out=mask)
        flat = mask.view(-1).nonzero().view(-1).cpu().numpy()
    if not len(flat):
        return
    found = scores.view(-1)[torch.from_numpy(flat).to(scores.device)].cpu().numpy()
    queries, columns = np.divmod(flat, width)
    best.add(queries, first + columns, found)
