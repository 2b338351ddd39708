"""Where the seconds of a contrastive step go.

    python benchmarks/where.py stage=pairs data=jsonl 'data.files=[rows.jsonl]' model.path=MODEL ... log_every=1

Takes a command line of bgetrain, runs it in this process, and prints a Markdown table: medians over all steps but the first.
"""

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf

from bgetrain import config, distributed, output
from bgetrain.cluster import host
from bgetrain.data import groups
from bgetrain.engine import loop
from bgetrain.engine.deepspeed import Engine
from bgetrain.stage import contrastive

PARTS = ("tokenise (a thread ahead)", "waiting for the batch", "forward", "loss", "backward", "optimizer", "rest")
seconds: dict[str, list[float]] = defaultdict(list)
running: dict[str, float] = defaultdict(float)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the time of its calls added up under `name`."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            running[name] += time.perf_counter() - began

    return call


def main(overrides: list[str]) -> None:
    """Runs the stage with timers around its parts."""
    os.environ |= {"LOCAL_RANK": "0", "OMP_WAIT_POLICY": "passive"}
    host.keep_memory()
    cfg: Any = OmegaConf.to_container(config.compose(overrides), resolve=True)
    world = distributed.start(0, 1, 0, 1, 5.0)
    output.claim(cfg)
    groups.group_batch = timed(PARTS[0], groups.group_batch)
    Engine.forward, Engine.backward = timed("forward", Engine.forward), timed("backward", Engine.backward)
    Engine.step, contrastive.call = timed("optimizer", Engine.step), timed("loss", contrastive.call)
    loop.next = timed(PARTS[1], next)
    began = time.perf_counter()

    def log(step: int, _: dict[str, float]) -> None:
        nonlocal began
        now = time.perf_counter()
        if step > 1:
            spent = {name: running[name] for name in PARTS}
            spent["rest"] = now - began - sum(spent[name] for name in PARTS[1:-1])
            for name, value in spent.items():
                seconds[name].append(value)
            seconds["step"].append(now - began)
        running.clear()
        began = time.perf_counter()

    contrastive.run(cfg, world, log)
    whole = statistics.median(seconds["step"])
    print(f"| part | s | of the step |\n|---|---|---|\n| step | {whole:.3f} | 100 % |")
    for name in PARTS:
        value = statistics.median(seconds[name])
        print(f"| {name} | {value:.3f} | {100 * value / whole:.1f} % |")


if __name__ == "__main__":
    main(sys.argv[1:])
