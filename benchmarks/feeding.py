"""Whether batches are made faster than a training step consumes them.

    python benchmarks/feeding.py stage=pairs model=tiny data=beir data.path=tldr/en global_batch=256 total_steps=12 ...

Takes a command line of bgetrain. Makes the batches of its first steps in a thread and in 1 and 2 processes with nothing else
running, then trains, and prints a Markdown table: tokens per second, and their ratio to what training consumes.
"""

import os
import statistics
import sys
import time
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from bgetrain import config, distributed, output
from bgetrain.cluster import host
from bgetrain.data import groups
from bgetrain.engine.ahead import ahead
from bgetrain.stage import build, contrastive, supply

STEPS, BEFORE = 24, 6  # batches timed, and those made before the clock starts: processes take seconds to come up


def made_per_second(batch_at: Any, num_workers: int) -> float:
    """Tokens per second of batches that nobody uses."""
    with ahead(batch_at, range(1, BEFORE + STEPS + 1), num_workers) as batches:
        for _ in range(BEFORE):
            next(batches)
        began, tokens = time.perf_counter(), 0
        for _ in range(STEPS):
            batch = next(batches)
            tokens += len(batch.query.ids) + len(batch.passage.ids)
        return tokens / (time.perf_counter() - began)


def main(overrides: list[str]) -> None:
    """Measures both and prints them."""
    os.environ |= {"LOCAL_RANK": "0", "OMP_WAIT_POLICY": "passive"}
    host.keep_memory()
    cfg: Any = OmegaConf.to_container(config.compose(overrides), resolve=True)
    world = distributed.start(0, 1, 0, 1, 5.0)
    output.claim(cfg)
    source = build.source(cfg, world)
    rows = supply.opened(source, lambda each: each.rows)
    body = build.body(cfg, source, world, masked_lm=False)
    supplied = supply.contrastive(cfg, source, rows, body.tokenizer, world)
    batch_at = partial(groups.group_batch, supplied.feeds, body.tokenizer, None, supplied.plan, range)
    made = {num_workers: made_per_second(batch_at, num_workers) for num_workers in (0, 1, 2)}
    logged: list[dict[str, float]] = []
    contrastive.run(cfg, world, lambda step, metrics: logged.append(metrics))
    used = statistics.median(each["tokens_per_second"] for each in logged[1:])
    print(f"| batches | tokens/s | of what training consumes |\n|---|---|---|\n| consumed by training | {used:,.0f} | 1 |")
    for num_workers, rate in made.items():
        print(f"| {f'{num_workers} processes' if num_workers else 'a thread'} | {rate:,.0f} | {rate / used:.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
