"""stage=evaluate: how well a model retrieves."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bgetrain import distributed
from bgetrain.logger import console
from bgetrain.metric.ranking import score
from bgetrain.search.bm25 import bm25
from bgetrain.sources import Retrieval
from bgetrain.stage import build, embed
from bgetrain.types import World

DEPTH = 100  # passages ranked for each query: the deepest cut-off of the metrics
SHOWN = ("ndcg@10", "mrr@10", "recall@10", "recall@100", "map")


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Embeds a corpus and its queries over all ranks and scores the ranking of one split.

    Args:
        cfg: the resolved config, as `conf/stage/evaluate.yaml` has it.
        world: all ranks.
        log: called on rank 0 with the metrics, as step 0.

    Returns:
        `metrics`, and `bm25` where asked for.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    began = time.perf_counter()
    source = build.source(cfg, world)
    open_set = build.need(source.retrieval, source, cfg, "corpus and queries", "data=beir or data=pydocs")
    retrieval, body = build.all_of(
        lambda: distributed.after_first(world, lambda: open_set(source.split)),
        lambda: build.body(cfg, source, world, masked_lm=False),
    )
    build.tell(retrieval, world)
    found = embed.ranked(cfg, embed.embedded(cfg, body, source, retrieval, world), DEPTH, world)
    scores, places = (distributed.gather_arrays(each, world) for each in (found.scores, found.places))
    if world.rank > 0:
        return {}
    figures: dict[str, Any] = {"metrics": score(ranking(retrieval, scores, places), retrieval.qrels)}
    if found.recall is not None:
        figures["search_recall"] = found.recall
    rows = {str(cfg["model"].get("path", "model")): figures["metrics"]}
    if cfg["evaluate"]["bm25"]:
        scores, places = bm25(retrieval.queries, retrieval.passages.take(range(len(retrieval.passages))), DEPTH)
        figures["bm25"] = rows["BM25"] = score(ranking(retrieval, scores, places), retrieval.qrels)
    log(0, figures["metrics"])
    title = f"{source.name}, {source.split}: {len(retrieval.queries):,} queries, {len(retrieval.passages):,} passages"
    console.table(title, ["", *SHOWN], [[name, *(metrics[key] for key in SHOWN)] for name, metrics in rows.items()])
    size = {"queries": len(retrieval.queries), "passages": len(retrieval.passages)}
    return {**figures, **size, "seconds": time.perf_counter() - began}


def ranking(retrieval: Retrieval, scores: np.ndarray, places: np.ndarray) -> dict[str, dict[str, float]]:
    """Query name -> passage name -> score.

    Args:
        scores: [Q, K].
        places: [Q, K], positions in the corpus; -1 where there are fewer.
    """
    ranked = {}
    for query, values, found in zip(retrieval.query_ids, scores, places, strict=True):
        there = found >= 0
        ranked[query] = dict(zip(retrieval.passages.names(found[there].tolist()), values[there].tolist(), strict=True))
    return ranked
