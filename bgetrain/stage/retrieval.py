"""How well embeddings retrieve: those of a model as it is, and those of one that is in training."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.data import tokenize as tokens
from bgetrain.metric import ranking as figures
from bgetrain.search import shards
from bgetrain.search.blocks import Ranked
from bgetrain.sources import Retrieval, Source
from bgetrain.stage import build, embed
from bgetrain.target import call
from bgetrain.types import Chunk, Ragged, World

DEPTH = 100  # passages ranked for each query: the deepest cut-off of the metrics
Forward = Callable[..., Tensor]  # the two tensors of a chunk -> [N, D], unit rows; every rank calls it equally often


def metrics(retrieval: Retrieval, found: Ranked, world: World) -> dict[str, float]:
    """Scores the best passages of all ranks' queries; on rank 0, empty elsewhere."""
    scored = metrics_of_queries(retrieval, found, world)
    return {} if world.rank else figures.mean(scored)


def metrics_of_queries(retrieval: Retrieval, found: Ranked, world: World) -> dict[str, dict[str, float]]:
    """Query name -> its figures, as `metric.ranking.score_each` has them; on rank 0, empty elsewhere."""
    scores, places = (distributed.gather_arrays(each, world) for each in (found.scores, found.places))
    return {} if world.rank else figures.score_each(ranking(retrieval, scores, places), retrieval.qrels)


def ranking(retrieval: Retrieval, scores: np.ndarray, places: np.ndarray) -> dict[str, dict[str, float]]:
    """Query name -> passage name -> score.

    Args:
        retrieval: names the queries and passages.
        scores: [Q, K].
        places: [Q, K], positions in the corpus; -1 where there are fewer.
    """
    ranked = {}
    for query, values, found in zip(retrieval.query_ids, scores, places, strict=True):
        there = found >= 0
        ranked[query] = dict(zip(retrieval.passages.names(found[there].tolist()), values[there].tolist(), strict=True))
    return ranked


class Tokenised(NamedTuple):
    """This rank's share of some texts, ready to be embedded as often as asked for.

    Attributes:
        total: texts of all ranks.
        pieces: the share in its order, a block at a time: token ids, and the chunks that they are cut into.
    """

    total: int
    pieces: list[tuple[Ragged, list[Tensor]]]


class Live(NamedTuple):
    """A retrieval set that a model in training is held against.

    Attributes:
        retrieval: the set.
        queries: with their instructions.
        passages: the corpus.
        idle: a text that a rank with fewer chunks embeds in their place.
        spare: how often this rank does: under ZeRO-3 every forward pass is one of all ranks.
        pad_id: of a padded chunk; None: chunks are packed.
        width: D.
    """

    retrieval: Retrieval
    queries: Tokenised
    passages: Tokenised
    idle: Ragged
    spare: int
    pad_id: int | None
    width: int


def live(
    cfg: build.Config, source: Source, retrieval: Retrieval, tokenizer: Any, pad_id: int | None, width: int, world: World
) -> Live:
    """Tokenises this rank's share of a retrieval set, and agrees with the others on the number of forward passes."""

    def tokenised(take: Callable[[range], Sequence[str]], total: int, max_len: int, what: str) -> Tokenised:
        own, pieces = distributed.share(total, world), []
        with embed.track(f"tokenise {what}", total, world) as advance:
            for start in range(own.start, own.stop, shards.BLOCK):
                part = range(start, min(start + shards.BLOCK, own.stop))
                text = tokens.tokenize(tokenizer, take(part), max_len)
                pieces.append((text, tokens.cut(text.lengths, cfg["chunk_tokens"], padded=pad_id is not None)))
                advance(len(part) * world.size)
        return Tokenised(total, pieces)

    texts = embed.instructed(retrieval, source.query_instruction)
    queries = tokenised(lambda part: texts[part.start : part.stop], len(texts), source.query_max_len, "queries")
    passages = tokenised(retrieval.passages.take, len(retrieval.passages), source.passage_max_len, "passages")
    passes = sum(len(groups) for _, groups in [*queries.pieces, *passages.pieces])
    idle = tokens.tokenize(tokenizer, ["a"], source.query_max_len)
    return Live(retrieval, queries, passages, idle, distributed.max_over_ranks(passes, world) - passes, pad_id, width)


def embedded(
    parts: Sequence[Tokenised],
    idle: Ragged,
    spare: int,
    forward: Forward,
    pad_id: int | None,
    width: int,
    world: World,
) -> list[np.ndarray]:
    """fp32 [n, D] for this rank's share of each of some sets of texts; the other arguments are those of `Live`."""

    def made(text: Ragged, group: Tensor) -> np.ndarray:
        chunk: Chunk | Ragged = tokens.chunk(text, group, pad_id)
        found: np.ndarray = forward(*(build.on_device(each, world) for each in chunk)).float().cpu().numpy()
        return found

    own = []
    with torch.no_grad():
        for each in parts:
            own.append(np.empty((len(distributed.share(each.total, world)), width), np.float32))
            begin = 0
            for text, groups in each.pieces:
                for group in groups:
                    own[-1][begin + group.numpy()] = made(text, group)
                begin += len(text.lengths)
        for _ in range(spare):
            made(idle, torch.tensor([0]))
    return own


def evaluated(cfg: build.Config, held: Live, forward: Forward, world: World) -> dict[str, float]:
    """Retrieval of a model as it is now, by the `search` of the config; metrics on rank 0, empty elsewhere.

    Args:
        cfg: of the stage.
        held: the set.
        forward: of the model in evaluation mode.
        world: all ranks; every one calls this.

    Raises:
        FloatingPointError: an embedding is not finite, on all ranks alike.
    """

    own = embedded(held[1:3], held.idle, held.spare, forward, held.pad_id, held.width, world)
    # counted before the search, which a rank that left would let hang
    bad = [int((~np.isfinite(rows).all(1)).sum()) for rows in own]
    if any(distributed.max_of_each(bad, world)):
        raise FloatingPointError("embeddings of the retrieval set of evaluate.split are not finite: training has diverged")
    queries, passages = (shards.settled(rows, each.total, world) for rows, each in zip(own, held[1:3], strict=True))
    found: Ranked = call(cfg["search"], queries, passages, DEPTH, world=world, advance=lambda _: None)
    return metrics(held.retrieval, found, world)
