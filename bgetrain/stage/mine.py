"""stage=mine: hard negatives for every training query, from a window of the ranks that a model gives."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgetrain import distributed
from bgetrain.distributed import barrier, max_over_ranks
from bgetrain.logger import console
from bgetrain.logger.histogram import histogram
from bgetrain.output import write
from bgetrain.search import audit as auditing
from bgetrain.search.blocks import Ranked
from bgetrain.search.mining import Miner, in_whole_blocks, mine
from bgetrain.search.negatives import same_text
from bgetrain.search.rescore import cross_encoder, model_score, pair_score
from bgetrain.search.rules import Rules
from bgetrain.stage import build, embed
from bgetrain.target import call
from bgetrain.types import World

BLOCK = 64  # queries mined together: their pairs go through a cross-encoder in batches that no number of ranks changes


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Ranks the corpus for each query and writes `output_dir/train.jsonl`, which data=jsonl reads.

    Every rank mines its share of the queries into a part, and rank 0 joins the parts in the order of the queries: the file
    is the same for any number of ranks. `scores.png` and `examples.md` show what was mined.

    Args:
        cfg: the resolved config, as `conf/stage/mine.yaml` has it.
        world: all ranks.
        log: called on rank 0 with the counts, as step 0.

    Returns:
        Figures for `result.json`: rows, negatives per row, rows with fewer than asked for, and `audit`.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    began = time.perf_counter()
    rules: Rules = call(cfg["mine"])
    source = build.source(cfg, world)
    if source.mix:
        raise ValueError("stage=mine takes one source: mine each of a mixture by itself, and mix what comes out")
    open_set = build.need(source.retrieval, source, cfg, "corpus and queries", "data=jsonl, data=beir or data=pydocs")
    retrieval, body, judge = build.all_of(
        lambda: distributed.after_first(world, lambda: open_set(source.split)),
        lambda: build.body(cfg, source, world, masked_lm=False),
        lambda: judge_of(cfg, rules, world),
    )
    build.tell(retrieval, world)
    if rules.first >= len(retrieval.passages):
        raise ValueError(
            f"mine.first={rules.first} leaves nothing of the {len(retrieval.passages)} passages of {source.name}: "
            f"ranks count from 0, so mine.first must be below that"
        )
    found = embed.embedded(cfg, body, source, retrieval, world)
    ranked = in_whole_blocks(embed.ranked(cfg, found, rules.last, world), len(retrieval.queries), BLOCK, world)
    score = model_score(found.queries, found.passages, world) if judge is None else pair_score(retrieval, judge)
    miner = Miner(retrieval, rules, cfg["seed"], same_text(retrieval.queries), score)
    parts = Path(cfg["output_dir"]) / ".parts"
    if world.rank == 0:
        shutil.rmtree(parts, ignore_errors=True)  # of a run that was interrupted
        parts.mkdir()
    barrier(world)
    mine_share(miner, ranked, parts, world)
    barrier(world)
    if world.rank > 0:
        return {}
    audit = auditing.merge((path.read_text("utf8") for path in sorted(parts.glob("*.json"))), cfg["seed"])
    if not audit.counts["negatives"]:
        raise ValueError(nothing_mined(auditing.figures(audit)["audit"]["dropped_ratio"]))
    path = Path(cfg["output_dir"]) / "train.jsonl"
    join(sorted(parts.glob("*.jsonl")), path)
    shutil.rmtree(parts)
    figures = auditing.figures(audit)
    show(cfg, rules, audit, figures)
    log(0, {name: figures[name] for name in ("rows", "negatives_per_row", "rows_short_of_negatives")})
    return {**figures, "seconds": time.perf_counter() - began}


def nothing_mined(dropped: Mapping[str, float]) -> str:
    """Says why no query has a negative."""
    if not dropped:
        return "mine: the windows hold no passage to draw from: set mine.first lower or mine.last higher"
    rule, ratio = max(dropped.items(), key=lambda each: each[1])
    return f"mine: no query has a negative left; {rule} drops {ratio:.0%} of the candidates: relax it"


def judge_of(cfg: build.Config, rules: Rules, world: World) -> Callable[[Sequence[tuple[str, str]]], np.ndarray] | None:
    """The cross-encoder of `mine.rescore`, on every rank."""
    path = rules.rescore
    if path is None:
        return None
    return distributed.after_first(
        world, lambda: cross_encoder(path, device=world.device, dtype=build.dtype(cfg, world), batch=rules.rescore_batch)
    )


def mine_share(miner: Miner, ranked: Ranked, parts: Path, world: World) -> None:
    """Mines this rank's blocks of queries, and writes its rows and its audit into `parts`."""
    own, total = ranked.queries, len(miner.retrieval.queries)
    audit = auditing.Audit(miner.seed)
    with (parts / f"{world.rank:06d}.jsonl").open("w", encoding="utf8") as rows, embed.track("mine", total, world) as advance:
        for number in range(max_over_ranks(-(-len(own) // BLOCK), world)):  # all ranks alike: scores may be a collective
            at = slice(number * BLOCK, (number + 1) * BLOCK)
            mined, counts, dropped = mine(miner, own[at], ranked.places[at], ranked.scores[at])
            audit.add_counts(counts, dropped)
            for each in mined:
                audit.add(each, miner.rules.number)
                rows.write(f"{json.dumps(each.row, ensure_ascii=False)}\n")
            advance(len(own[at]) * world.size)
    write(parts / f"{world.rank:06d}.json", audit.dump())


def join(parts: Sequence[Path], path: Path) -> None:
    """Lays files end to end; the result is whole or as it was."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as whole:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole, 1 << 20)
    beside.replace(path)


def show(cfg: build.Config, rules: Rules, audit: auditing.Audit, figures: Mapping[str, Any]) -> None:
    """Writes the histogram and the examples, and says on the console what was mined."""
    folder = Path(cfg["output_dir"])
    by = "the cross-encoder" if rules.rescore is not None else "the model"
    histogram(folder / "scores.png", auditing.scores_of(audit), title="Mined negatives", label=f"score by {by}")
    write(folder / "examples.md", auditing.examples(audit))
    rows, each = f"{figures['rows']:,} rows", f"{figures['negatives_per_row']:.1f} negatives each on average"
    short = f"{figures['rows_short_of_negatives']:,} rows with fewer than {rules.number}"
    console.say(f"wrote {folder / 'train.jsonl'}: {rows}, {each}, {short}")
    dropped = figures["audit"]["dropped_ratio"]
    if dropped:
        console.say("dropped of the candidates: " + ", ".join(f"{name} {100 * ratio:.1f} %" for name, ratio in dropped.items()))
    left_out = figures["audit"]["own_negatives_left_out"]
    if left_out:
        console.say(f"left out {left_out:,} negatives that the rows had: mine.keep_negatives=true writes them before those mined")
