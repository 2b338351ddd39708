"""stage=mine: hard negatives for every training query, from a window of the ranks that a model gives."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bgetrain import distributed
from bgetrain.logger import console
from bgetrain.output import write
from bgetrain.stage import build, embed
from bgetrain.target import call
from bgetrain.types import Retrieval, World


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Ranks the corpus for each query and writes `output_dir/train.jsonl`, which data=jsonl reads.

    Args:
        cfg: the resolved config, as `conf/stage/mine.yaml` has it.
        world: all ranks.
        log: called on rank 0 with the counts, as step 0.

    Returns:
        Figures for `result.json`: rows, negatives per row, rows with fewer than asked for.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    began = time.perf_counter()
    source = build.source(cfg, world)
    open_set = build.need(source.retrieval, source, cfg, "corpus and queries", "data=jsonl, data=beir or data=pydocs")
    retrieval, body = build.all_of(
        lambda: build.first(world, lambda: open_set(source.split)), lambda: build.body(cfg, source, world, masked_lm=False)
    )
    build.tell(retrieval, world)
    if cfg["mine"]["first"] >= len(retrieval.passages):
        raise ValueError(
            f"mine.first={cfg['mine']['first']} leaves nothing of the {len(retrieval.passages)} passages of {source.name}: "
            f"ranks count from 0, so mine.first must be below that"
        )
    texts = retrieval.passages.take(range(len(retrieval.passages)))
    found = embed.ranked(cfg, embed.embedded(cfg, body, source, retrieval, world), cfg["mine"]["last"], world)
    ranked = distributed.gather_arrays(found.places, world)
    if world.rank > 0:
        return {}
    relevant = (retrieval.passages.find(list(retrieval.qrels[query])) for query in retrieval.query_ids)
    positives = [[text for text in retrieval.passages.take([at for at in places if at >= 0]) if text] for places in relevant]
    drawn = call(
        cfg["mine"],
        ranked,
        query_ids=retrieval.query_ids,
        queries=retrieval.queries,
        positives=positives,
        passage_ids=retrieval.passages.names(range(len(texts))),
        passages=texts,
        seed=cfg["seed"],
    )
    rows = mined_rows(retrieval, positives, drawn)
    path = Path(cfg["output_dir"]) / "train.jsonl"
    write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    counts = [len(row["neg"]) for row in rows]
    short = sum(count < cfg["mine"]["number"] for count in counts)
    figures = {"rows": len(rows), "negatives_per_row": sum(counts) / max(1, len(counts)), "rows_short_of_negatives": short}
    log(0, figures)
    console.say(
        f"wrote {path}: {len(rows):,} rows, {figures['negatives_per_row']:.1f} negatives each on average, "
        f"{short:,} rows with fewer than {cfg['mine']['number']}"
    )
    return {**figures, "seconds": time.perf_counter() - began}


def mined_rows(retrieval: Retrieval, positives: Sequence[list[str]], drawn: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """One row for each query that has a positive, as data=jsonl reads it.

    Args:
        retrieval: Q queries.
        positives: of each query, texts.
        drawn: of each query, positions of its negatives in the corpus.
    """
    rows = []
    for number, places in enumerate(drawn):
        row: dict[str, Any] = {"query": retrieval.queries[number], "pos": positives[number]}
        row["neg"] = retrieval.passages.take(places)
        if retrieval.prompts[number] is not None:
            row["prompt"] = retrieval.prompts[number]
        if positives[number]:
            rows.append(row)
    return rows
