"""A step of masked auto-encoding against the literal reference: its collator of Python loops, logits at every position.

    python benchmarks/retromae.py --data tldr/en --size 4x256 --batch 32 --steps 3

The reference is that of the tests (tests/retromae.py, tests/model/literal.py), which does what staoxiao/RetroMAE does: masks by
loops over positions, texts padded to the longest of the batch, vocabulary logits of encoder and decoder at every position, in
fp32. It takes all texts at once, or parts of them whose gradients add up; compare with the best. Each side is a process of its
own; texts are tokenised before; forward, backward and masks are timed, the optimizer is not. The fast path draws the encoder's
dropout its own way (model/dropout.py), which is part of the ratio; --dropout 0 leaves it out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np

TESTS = Path(__file__).parent.parent / "tests"


def prepared(asked: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Model, masking and one batch."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from bgetrain.data.corpus import beir
    from bgetrain.data.masking import masking
    from bgetrain.data.tokenize import tokenize_words, train_wordpiece
    from bgetrain.model.retromae import RetroMAE
    from bgetrain.types import TextBatch

    limits = {"query_max_len": 64, "passage_max_len": 512, "query_instruction": "", "missing_negatives": "random"}
    source = beir(asked.data, **limits, split="train")
    texts = source.texts()
    tokenizer = train_wordpiece(texts.take(range(len(texts))), 30522, 512)
    chosen = np.random.default_rng(0).permutation(len(texts))[: asked.batch].tolist()
    text, words = tokenize_words(tokenizer, texts.take(chosen), asked.max_len)
    layers, width = map(int, asked.size.split("x"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width, hidden_dropout_prob=asked.dropout, attention_probs_dropout_prob=asked.dropout,
    )  # fmt: skip
    module = RetroMAE(BertForMaskedLM(config), query="position", bag_of_words=False)
    rules = {"encoder_ratio": 0.3, "decoder_ratio": 0.5, "decoder_masks": 256}
    drawn = masking(**rules, mask_id=tokenizer.mask_token_id, vocab_size=len(tokenizer), seed=0)
    return module, drawn, TextBatch(text, words, torch.arange(asked.batch), 0.0)


def fast(asked: argparse.Namespace) -> dict[str, float]:
    """The stage's own step, without DeepSpeed around the module."""
    import torch

    from bgetrain.loss.retromae import retromae
    from bgetrain.model.dropout import replace_dropout
    from bgetrain.stage import masked
    from bgetrain.types import World

    module, drawn, batch = prepared(asked)
    replace_dropout(module)
    engine: Any = SimpleNamespace(forward=module, backward=lambda loss, last: loss.backward())
    world = World(0, 1, 0, 1, torch.device("cpu"))
    trained = masked.Trained(engine, retromae(query="position"), drawn, world)
    shares = []

    def step(number: int) -> float:
        _, counts = masked.update_once(trained, number, masked.chunks_of(batch, asked.chunk_tokens, 0))
        shares.append(counts.seconds["masking"])
        return 1 - counts.tokens / counts.padded

    seconds, padding = timed(step, asked.steps)
    return {"seconds": seconds, "tokens": len(batch.text.ids), "padding": padding, "masking": statistics.median(shares[1:])}


def literal(asked: argparse.Namespace) -> dict[str, float]:
    """The reference, `parts` texts at a time."""
    sys.path.insert(0, str(TESTS))
    from model import literal as decoder
    from retromae import literal_batch

    module, drawn, batch = prepared(asked)
    lengths = batch.text.lengths.tolist()
    ids, words = ([part.tolist() for part in each.split(lengths)] for each in (batch.text.ids, batch.words))
    rules = (drawn.encoder_ratio, drawn.decoder_ratio, drawn.decoder_masks, drawn.mask_id, drawn.vocab_size, 0)
    collating: list[float] = []

    def step(number: int) -> float:
        random, padded, spent = Random(number), 0, 0.0
        for first in range(0, len(ids), asked.part):
            began = time.perf_counter()
            here = slice(first, first + asked.part)
            tensors = literal_batch(ids[here], words[here], *rules, random)
            tensors["clean_ids"] = tensors.pop("ids")
            spent += time.perf_counter() - began
            encoder, rebuilt = decoder.losses(module, tensors)
            (encoder + rebuilt).backward()
            padded += tensors["clean_ids"].numel()
        collating.append(spent)
        return 1 - len(batch.text.ids) / padded

    seconds, padding = timed(step, asked.steps)
    return {"seconds": seconds, "tokens": len(batch.text.ids), "padding": padding, "masking": statistics.median(collating[1:])}


def timed(step: Any, steps: int) -> tuple[float, float]:
    """Median seconds of `steps` steps after one; the share of padding."""
    took = []
    padding = 0.0
    for number in range(steps + 1):
        began = time.perf_counter()
        padding = step(number)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:]), padding


def child(asked: argparse.Namespace) -> None:
    import resource

    found = {"fast": fast, "literal": literal}[asked.side](asked)
    print(json.dumps(found | {"gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder in BEIR layout")
    parser.add_argument("--size", default="4x256", help="layers x width")
    parser.add_argument("--batch", type=int, default=32, help="texts")
    parser.add_argument("--parts", default="32,8", help="texts that the reference takes at a time, of which the best counts")
    parser.add_argument("--max-len", type=int, default=512)
    parser.add_argument("--chunk-tokens", type=int, default=2048)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        return child(asked)

    def run(side: str, part: int) -> dict[str, float]:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--part", str(part)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    sides = {"fast path": partial(run, "fast", 0)}
    sides |= {f"literal, {part} texts at a time": partial(run, "literal", int(part)) for part in asked.parts.split(",")}
    found = {name: side() for name, side in sides.items()}
    ours = found["fast path"]
    print(f"{asked.size}, {asked.batch} texts, {ours['tokens']:,.0f} tokens, 30,522 words, dropout {asked.dropout}")
    print("| side | s | tokens/s | padding | masks, share of the step | peak GB | fast path is |\n|---|---|---|---|---|---|---|")
    for name, each in found.items():
        print(
            f"| {name} | {each['seconds']:.2f} | {each['tokens'] / each['seconds']:,.0f} | {each['padding']:.0%} | "
            f"{each['masking'] / each['seconds']:.1%} | {each['gb']:.2f} | {each['seconds'] / ours['seconds']:.1f} x |"
        )


if __name__ == "__main__":
    main()
