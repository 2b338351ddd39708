"""bgetrain's InfoNCE alone, forward and backward, on random unit embeddings: one line of seconds for each of three rounds."""

import argparse
import json
import time
from pathlib import Path

import torch
import yaml
from settings import ROOT, TEMPERATURE
from torch.nn import functional as F

from bgetrain.target import call
from bgetrain.types import Contrast, World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--batch", "--passages", "--width", "--threads"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--lines", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    query, passage = (F.normalize(torch.randn(rows, options.width), dim=-1) for rows in (options.batch, options.passages))
    keys = yaml.safe_load((ROOT / "conf/loss/info_nce.yaml").read_text("utf8")) | {"temperature": TEMPERATURE}
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
    for number in range(3):
        query.requires_grad_().grad = passage.requires_grad_().grad = None
        began = time.perf_counter()
        output = call(keys, Contrast(query, passage), counts=[len(query)], world=world)
        output.loss.backward()
        with options.lines.open("a", encoding="utf8") as lines:
            lines.write(json.dumps({"step": number + 1, "seconds": time.perf_counter() - began}) + "\n")


if __name__ == "__main__":
    main()
