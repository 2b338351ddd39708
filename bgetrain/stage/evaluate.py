"""stage=evaluate: how well a model retrieves."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from bgetrain import distributed
from bgetrain.logger import console
from bgetrain.metric.ranking import score
from bgetrain.search.bm25 import bm25
from bgetrain.stage import benchmark, build, embed, retrieval
from bgetrain.types import World

SHOWN = ("ndcg@10", "mrr@10", "recall@10", "recall@100", "map")


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Embeds a corpus and its queries over all ranks and scores the ranking of one split; or runs tasks of MTEB.

    Args:
        cfg: the resolved config, as `conf/stage/evaluate.yaml` has it.
        world: all ranks.
        log: called on rank 0 with the metrics, as step 0.

    Returns:
        `metrics`, and `bm25` where asked for; of MTEB what `benchmark.run` says.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    began = time.perf_counter()
    source = build.source(cfg, world)
    if source.benchmark is not None:
        return benchmark.run(cfg, source, source.benchmark, world, log)
    open_set = build.need(source.retrieval, source, cfg, "corpus and queries", "data=beir, data=pydocs or data=mteb")
    opened, body = build.all_of(
        lambda: distributed.after_first(world, lambda: open_set(source.split)),
        lambda: build.body(cfg, source, world, masked_lm=False),
    )
    build.tell(opened, world)
    found = embed.ranked(cfg, embed.embedded(cfg, body, source, opened, world), retrieval.DEPTH, world)
    metrics = retrieval.metrics(opened, found, world)
    if world.rank > 0:
        return {}
    figures: dict[str, Any] = {"metrics": metrics}
    if found.recall is not None:
        figures["search_recall"] = found.recall
    rows = {str(cfg["model"].get("path", "model")): figures["metrics"]}
    if cfg["evaluate"]["bm25"]:
        scores, places = bm25(opened.queries, opened.passages.take(range(len(opened.passages))), retrieval.DEPTH)
        figures["bm25"] = rows["BM25"] = score(retrieval.ranking(opened, scores, places), opened.qrels)
    log(0, figures["metrics"])
    title = f"{source.name}, {source.split}: {len(opened.queries):,} queries, {len(opened.passages):,} passages"
    console.table(title, ["", *SHOWN], [[name, *(row[key] for key in SHOWN)] for name, row in rows.items()])
    size = {"queries": len(opened.queries), "passages": len(opened.passages)}
    return {**figures, **size, "seconds": time.perf_counter() - began}
