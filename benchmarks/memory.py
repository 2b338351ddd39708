"""Peak memory at growing batches: 2 layers x 128, two passages a query, short rows; called by contrastive.py --memory."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from runs import Limits, watch

LAYERS, WIDTH, GROUP_SIZE = 2, 128, 2
BATCHES = [1024, 8192, 32768]
# of many ways to be bounded the one that fits short rows; the plain ones show where a peer ends
PEER_NAMES = (
    "MultipleNegativesRankingLoss",
    "Cached..., mini_batch_size=64",
    "Cached..., mini_batch_num_tokens=4096",
    "no sub_batch_size",
    "sub_batch_size=64",
    "sub_batch_size=32, gradient_checkpointing",
)


def measure(options: argparse.Namespace, peers_python: str, record: dict[str, Any]) -> None:
    """Runs every bounded setting (and each peer's plain one) at each batch; prints and writes the figures.

    `--batches` gives one list of batches (1024,8192,32768 where it is left out). bgetrain runs step_mode=cached; its
    encoder seconds are those of the step less those of the loss alone on random embeddings of the same size.
    """
    from contrastive import candidates, compare

    batches = options.batches[0] if len(options.batches) == 1 else BATCHES
    chosen = [each for each in candidates(options) if each.name in PEER_NAMES or (each.framework == "bgetrain" and each.bounded)]
    record["cells"] = []
    for batch in batches:
        cell = compare(options, peers_python, chosen, LAYERS, WIDTH, batch, GROUP_SIZE)
        cell["loss"] = loss_alone(options, batch, cell["matmul_rate"])
        record["cells"].append(cell)
        (options.output / "memory.json").write_text(json.dumps(record, indent=1), "utf8")
    print(f"## Memory: {LAYERS} layers x {WIDTH}, group_size {GROUP_SIZE}, max_len {options.max_len}\n")
    print("| framework | setting | batch | peak GB | s/step | encoder s/query | loss alone s | its floor s |")
    print("|---|---|---|---|---|---|---|---|")
    for cell in record["cells"]:
        for result in cell["results"]:
            print(row(cell, result))
    for name in [each.name for each in chosen if each.framework == "bgetrain"]:
        bound(record["cells"], name)


def row(cell: dict[str, Any], result: dict[str, Any]) -> str:
    start = f"| {result['framework']} | {result['setting']} | {cell['batch']:,} | {result['peak_bytes'] / 1e9:.2f} |"
    if "seconds" not in result or result["status"] != "done":
        return f"{start} {result['status']} | | | |"
    loss = cell["loss"]
    if result["framework"] != "bgetrain" or "seconds" not in loss:
        return f"{start} {result['seconds']:.2f} | | {loss['status'] if result['framework'] == 'bgetrain' else ''} | |"
    encoder = (result["seconds"] - loss["seconds"]) / cell["batch"]
    return f"{start} {result['seconds']:.2f} | {encoder * 1e3:.3f} ms | {loss['seconds']:.3f} | {loss['floor_seconds']:.3f} |"


def bound(cells: list[dict[str, Any]], name: str) -> None:
    """Prints peak at the largest batch beside 1.15 x the peak at the smallest plus the embeddings and their gradients."""
    peaks = [(cell["batch"], each["peak_bytes"]) for cell in cells for each in cell["results"] if each["setting"] == name]
    (_, small), (batch, large) = peaks[0], peaks[-1]
    embeddings = 2 * batch * (1 + GROUP_SIZE) * WIDTH * 4
    allowed = 1.15 * small + embeddings
    print(
        f"\nbgetrain, {name}: {large / 1e9:.3f} GB at {batch:,}; 1.15 x {small / 1e9:.3f} GB + {embeddings / 1e9:.3f} GB "
        f"of embeddings and their gradients = {allowed / 1e9:.3f} GB: {'within' if large <= allowed else 'NOT within'}"
    )


def loss_alone(options: argparse.Namespace, batch: int, rate: float) -> dict[str, Any]:
    """Seconds of bgetrain's loss, forward and backward, on random unit embeddings, in a process of its own."""
    from settings import HERE, ROOT

    sizes = [
        "--batch",
        str(batch),
        "--passages",
        str(batch * GROUP_SIZE),
        "--width",
        str(WIDTH),
        "--threads",
        str(options.threads),
    ]
    lines = options.output / f"loss-{batch}.jsonl"
    lines.unlink(missing_ok=True)
    words = [sys.executable, str(HERE / "loss_alone.py"), *sizes, "--lines", str(lines)]
    limits = Limits(int(options.memory_limit_gb * 1e9), options.time_limit, options.threads)
    outcome = watch(words, lines, Path(f"{lines}.log"), steps=3, limits=limits, paths=[str(ROOT)])
    found = {"status": outcome.status, "peak_bytes": outcome.peak_bytes, "command": words}
    # 8 x B x P x D: scores in the forward pass; scores again and two gradients in the backward pass
    floor = 8.0 * batch * batch * GROUP_SIZE * WIDTH / rate
    if outcome.status == "done":
        found |= {"seconds": sorted(line["seconds"] for line in outcome.lines)[1], "floor_seconds": floor}
    return found
