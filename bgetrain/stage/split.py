"""stage=split: a part of one's own rows is kept back as a retrieval set, and the others are written to be trained on."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bgetrain.data.split import Parted
from bgetrain.logger import console
from bgetrain.stage import build
from bgetrain.target import call
from bgetrain.types import World


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Parts the rows of `cfg.data`; `output_dir` is then a folder for data=beir, with `train.jsonl` beside.

    Args:
        cfg: the resolved config, as `conf/stage/split.yaml` has it.
        world: one rank.
        log: called with the counts, as step 0.

    Returns:
        Figures for `result.json`: rows to train on, queries and passages of the retrieval set.

    Raises:
        ValueError: several ranks, or rows that cannot be parted as asked.
    """
    began = time.perf_counter()
    if world.size > 1:
        raise ValueError(f"stage=split runs on one rank, got {world.size}: set num_processes=1")
    source = build.source(cfg, world)
    if source.mix:
        raise ValueError("stage=split takes one source: part each of a mixture by itself")
    rows = build.need(source.rows, source, cfg, "labelled rows", "data=jsonl")()
    build.tell(rows, world)
    folder = Path(cfg["output_dir"])
    parted: Parted = call(cfg["split"], rows, folder, cfg["seed"])
    console.say(
        f"wrote {folder / 'train.jsonl'}: {parted.train_rows:,} rows, and beside it a retrieval set of {parted.queries:,} "
        f"queries that are not among them and {parted.passages:,} passages: data=beir data.path={folder}"
    )
    if parted.prompts:
        console.say(f"{parted.prompts:,} of those queries have a prompt of their own, which evaluation does not put before them")
    log(0, {name: float(value) for name, value in parted._asdict().items()})
    return {**parted._asdict(), "seconds": time.perf_counter() - began}
