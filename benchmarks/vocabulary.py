"""Memory and time of the losses over a vocabulary, forward and backward: ours, the whole matrix, slices under checkpointing.

    python benchmarks/vocabulary.py [--words 30522,250002] [--widths 256,768] [--tokens 1024,4096,16384] [--threads 1]

Prints a Markdown table. Memory: a process of its own for each cell, the peak of its resident memory less what it held before
the forward pass (states, weight and bias); the gradients of these, fp32, are part of it and given beside it. Time: the ways that
fit in turn in one process, the best of two rounds, and its ratio to ours; left out where a round would take minutes. Linux only.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

WAYS = ("ours", "whole matrix", "checkpointed slices", "bag of words", "bag of words, whole matrix")
COPIES = 3  # of [tokens, vocabulary] that the whole matrix needs: logits, their log softmax, their gradient
TEXT = 128  # tokens of a text of the bag of words
LIMIT_GB = 12.0  # what does not fit is not run
TIMED = 7e10  # tokens x words x width above which nothing is timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", default="30522,250002")
    parser.add_argument("--widths", default="256,768")
    parser.add_argument("--tokens", default="1024,4096,16384")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        child(**json.loads(options.child))
        return
    print("| words | width | tokens | way | peak MB | of these gradients MB | seconds | to ours |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for words in map(int, options.words.split(",")):
        for width in map(int, options.widths.split(",")):
            for tokens in map(int, options.tokens.split(",")):
                cell(words, width, tokens, options.threads)


def cell(words: int, width: int, tokens: int, threads: int) -> None:
    """Prints the rows of one size."""
    size = {"words": words, "width": width, "tokens": tokens, "threads": threads}
    fitting = [way for way in WAYS if "whole" not in way or COPIES * 4e-9 * words * tokens < LIMIT_GB]
    timed = tokens * words * width < TIMED
    seconds = run(ways=fitting, what="time", **size) if timed else {}
    for way in WAYS:
        start = f"| {words:,} | {width} | {tokens:,} | {way} |"
        if way not in fitting:
            print(f"{start} over {LIMIT_GB:.0f} GB | | | |", flush=True)
            continue
        peak = run(ways=[way], what="memory", **size)[way]
        kept = 4 * width * (words + tokens) / 1e6
        base = "bag of words" if way.startswith("bag") else "ours"
        times = f"{seconds[way]:.2f} | {seconds[way] / seconds[base]:.2f}" if timed else " | "
        print(f"{start} {peak / 1e6:,.0f} | {kept:,.0f} | {times} |", flush=True)


def run(**arguments: object) -> dict[str, float]:
    """What `child` measures, in a process of its own."""
    words = [sys.executable, __file__, "--child", json.dumps(arguments)]
    found: dict[str, float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


def child(words: int, width: int, tokens: int, threads: int, ways: list[str], what: str) -> None:
    """Prints bytes or seconds of each way as JSON."""
    import torch

    torch.set_num_threads(threads)
    steps = losses(words, width, tokens)
    found = dict.fromkeys(ways, float("inf"))
    if what == "memory":
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        steps[ways[0]]()
        found[ways[0]] = resident("VmHWM") - before
    else:
        for _ in range(2):
            for way in ways:
                began = time.perf_counter()
                steps[way]()
                found[way] = min(found[way], time.perf_counter() - began)
    print(json.dumps(found))


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text("utf8").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def losses(words: int, width: int, tokens: int) -> dict[str, Callable[[], None]]:
    """Each way's forward and backward pass; a few tokens have gone through each, so that libraries have what they keep."""
    import torch
    from torch.nn import functional as F
    from torch.utils.checkpoint import checkpoint

    from bgetrain.loss.bag_of_words import bag_of_words
    from bgetrain.loss.vocabulary import cross_entropy, slice_rows

    torch.manual_seed(1)

    def ways(words: int, tokens: int) -> dict[str, Callable[[], None]]:
        states, targets = torch.randn(tokens, width, requires_grad=True), torch.randint(words, (tokens,))
        weight = torch.empty(words, width).normal_(std=0.02).requires_grad_()
        bias, scales = torch.zeros(words, requires_grad=True), torch.full((tokens,), 1 / tokens)
        texts = torch.arange(tokens) // TEXT

        def whole(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(F.linear(states, weight, bias).float(), targets, reduction="sum") / tokens

        def checkpointed() -> torch.Tensor:
            rows = slice_rows(words, states.device)
            pairs = zip(states.split(rows), targets.split(rows), strict=True)
            return torch.stack([checkpoint(whole, *pair, use_reentrant=False) for pair in pairs]).sum()

        def whole_bag() -> torch.Tensor:
            said = torch.stack([part.amax(0) for part in F.linear(states, weight, bias).split(TEXT)]).log_softmax(1)
            return -(torch.zeros_like(said).index_put_((texts, targets), torch.tensor(1 / TEXT)) * said).sum()

        def ours_bag() -> torch.Tensor:
            return bag_of_words(states, texts, weight, bias, targets, texts, num_texts=-(-tokens // TEXT), repeated="once")[0]

        def ours() -> torch.Tensor:
            return cross_entropy(states, weight, bias, targets, scales)[0]

        def stepped(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
            def step() -> None:
                loss().backward()
                states.grad = weight.grad = bias.grad = None

            return step

        everything = (ours, lambda: whole(states, targets), checkpointed, ours_bag, whole_bag)
        return {name: stepped(loss) for name, loss in zip(WAYS, everything, strict=True)}

    for step in ways(100, 2 * TEXT).values():
        step()
    return ways(words, tokens)


if __name__ == "__main__":
    main()
