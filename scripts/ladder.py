#!/usr/bin/env python3
"""Puts the ladders of several runs of a recipe side by side: mean and spread over seeds.

    for seed in 1 2 3; do bgetrain recipe=quickstart seed=$seed output_dir=outputs/quickstart-$seed; done
    python scripts/ladder.py outputs/quickstart-{1,2,3}
"""

import json
import statistics
import sys
from pathlib import Path

METRICS = ("ndcg@10", "mrr@10", "recall@100")


def main(folders: list[str]) -> None:
    """Prints one Markdown row for each rung and metric of the `result.json` files in `folders`."""
    results = [json.loads((Path(folder) / "result.json").read_text("utf8")) for folder in folders]
    ladders = [{rung["step"]: rung for rung in [*each["ladder"], {"step": "BM25", **each["bm25"]}]} for each in results]
    print(f"| rung | metric | {' | '.join(Path(folder).name for folder in folders)} | mean | spread |")
    print(f"|---|---|{'---|' * (len(folders) + 2)}")
    for rung in ladders[0]:
        for metric in METRICS:
            values = [ladder[rung][metric] for ladder in ladders]
            cells = " | ".join(f"{value:.4f}" for value in values)
            print(f"| {rung} | {metric} | {cells} | {statistics.mean(values):.4f} | {max(values) - min(values):.4f} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER...  (output folders of finished recipes)")
    main(sys.argv[1:])
