"""stage=evaluate: how well a model retrieves."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bgetrain import output
from bgetrain.logger import console
from bgetrain.metric.ranking import score
from bgetrain.search.bm25 import bm25
from bgetrain.stage import against, benchmark, build, retrieval, sets
from bgetrain.types import World


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Embeds corpora and their queries over all ranks and scores the ranking of one split of each; or runs tasks of MTEB.

    Args:
        cfg: the resolved config, as `conf/stage/evaluate.yaml` has it.
        world: all ranks.
        log: called on rank 0 with the metrics, as step 0.

    Returns:
        `metrics` and their `intervals`, means over the sets; `sets` has those of each; `bm25` and `compare` where asked for.
        Of MTEB what `benchmark.run` says.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    began = time.perf_counter()
    source = build.source(cfg, world)
    if source.benchmark is not None:
        return benchmark.run(cfg, source, source.benchmark, world, log)
    opened, body = build.all_of(
        lambda: sets.opened(cfg, source, world),
        lambda: build.body(cfg, source, world, masked_lm=False),
    )
    other = against.opened(cfg, opened, world)
    outcomes = sets.evaluated(cfg, body, opened, world)
    theirs = None if other is None else against.outcomes(other, opened, world)
    if world.rank > 0:
        return {}
    figures = sets.figures(opened, outcomes, cfg["seed"])
    if cfg["evaluate"]["bm25"]:
        add_bm25(figures, opened)
    output.write(Path(cfg["output_dir"]) / "queries.jsonl", sets.lines(opened, outcomes))
    log(0, figures["metrics"])
    show(figures, opened, str(cfg["model"].get("path", "model")))
    if theirs is not None:
        ours, path = [each.scores for each in outcomes], cfg["evaluate"]["compare"]
        figures["compare"] = against.compared(opened, ours, theirs, path, cfg["seed"])
        against.show(figures["compare"])
    return {**figures, "seconds": time.perf_counter() - began}


def add_bm25(figures: dict[str, Any], opened: Sequence[sets.Set]) -> None:
    """Ranks the queries of each set by BM25 too."""
    for each in opened:
        held = each.retrieval
        scores, places = bm25(held.queries, held.passages.take(range(len(held.passages))), retrieval.DEPTH)
        figures["sets"][each.name]["bm25"] = score(retrieval.ranking(held, scores, places), held.qrels)
    shares = sets.weights([each.name for each in opened])
    figures["bm25"] = sets.mean_of([figures["sets"][each.name]["bm25"] for each in opened], shares)


def show(figures: Mapping[str, Any], opened: Sequence[sets.Set], model: str) -> None:
    """Prints the figures of each set, and where there are several their mean."""

    def cells(found: Mapping[str, Any]) -> list[str]:
        # the two sides of a bootstrap interval hardly differ
        half = {name: (high - low) / 2 for name, (low, high) in found["intervals"].items()}
        return [f"{found['metrics'][name]:.4f} ±{half[name]:.4f}" for name in sets.SHOWN]

    def beside(name: str, found: Mapping[str, Any]) -> list[list[str]]:
        return [[name, *(f"{found['bm25'][each]:.4f}" for each in sets.SHOWN)]] if "bm25" in found else []

    many, columns = len(opened) > 1, ["", *sets.SHOWN]
    if not many:
        only = opened[0]
        size = f"{figures['queries']:,} queries, {figures['passages']:,} passages"
        title = f"{only.source.name}, {only.source.split}: {size}; ± 95 % interval"
        console.table(title, columns, [[model, *cells(figures)], *beside("BM25", figures)])
        return
    rows = []
    for name, found in figures["sets"].items():
        rows += [[f"{name} ({found['queries']:,} queries)", *cells(found)], *beside("  BM25", found)]
    folders = len({name.partition("/")[0] for name in figures["sets"]})
    rows += [[f"mean of {folders}", *cells(figures)], *beside("  BM25", figures)]
    console.table(f"{model}: {figures['queries']:,} queries, {figures['passages']:,} passages; ± 95 % interval", columns, rows)
