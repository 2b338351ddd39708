"""Mining side by side: bgetrain, FlagEmbedding's hn_mine and sentence-transformers' mine_hard_negatives.

    python benchmarks/mining.py --data PATH/tldr/en --output benchmarks/out-mining
    python benchmarks/mining.py --data PATH/tldr/en --output benchmarks/out-mining --passages 100000 --queries 10000 --width 128

Ranks 10 to 210, 15 negatives for each query at random, fp32, the same threads. One process at a time, in turns; seconds leave
out imports, memory is the process's peak. `vectors`: from embeddings to rows on disk. `texts`: from a folder in BEIR layout and
a model with random weights to rows on disk. Agreement, measured apart from time: of each query's whole window, the share of
passages whose exact score (fp64) lies in the window of numpy's own ranking, give or take 1e-6.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import prepare
from mining_sides import FIRST, LAST
from peers import environment

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # this checkout's bgetrain, for the vocabulary
WITHIN = 1e-6  # of an fp32 product of unit vectors of width 128


class Side(NamedTuple):
    """A way to mine.

    Attributes:
        name: for the table.
        side: of mining_sides.py.
        options: more of its options.
    """

    name: str
    side: str
    options: tuple[str, ...]


SIDES = [
    Side("bgetrain", "bgetrain", ()),
    Side("FlagEmbedding, hn_mine", "hn_mine", ()),
    Side("sentence-transformers, use_faiss", "sentence-transformers", ("--faiss",)),
    Side("sentence-transformers", "sentence-transformers", ()),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder in BEIR layout, gzipped; without it the texts are left out")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-flagembedding", action="store_true", help="leave out what needs its package")
    options = parser.parse_args()
    vectors = make_vectors(options)
    task = f"vectors: {options.passages:,} x {options.queries:,} of width {options.width}"
    record = {"command": sys.argv, "threads": options.threads, "tasks": {}}
    found = {side.name: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            found[side.name].append(run(options, side, "vectors", ["--vectors", str(vectors)], sys.executable))
    agreements = {side.name: agreement(options, side, vectors) for side in SIDES}
    record["tasks"][task] = {"runs": found, "agreement": agreements}
    report(task, found, agreements)
    if options.data:
        folder = options.output / "model"
        tokenizer = prepare.vocabulary(prepare.read_pairs(options.data, "pages"), 8000, folder)
        prepare.model(folder, tokenizer, 2, options.width, 0.1)
        chosen = [side for side in SIDES if side.side != "hn_mine" or not options.without_flagembedding]
        found = {side.name: [] for side in chosen}
        for _ in range(options.rounds):
            for side in chosen:
                python = environment.python() if side.side == "hn_mine" else sys.executable
                found[side.name].append(
                    run(options, side, "texts", ["--data", str(options.data), "--model", str(folder)], python)
                )
        task = f"texts: {options.data}, 2 layers x {options.width}"
        record["tasks"][task] = {"runs": found}
        report(task, found, {})
    (options.output / "mining.json").write_text(json.dumps(record, indent=1), "utf8")


def make_vectors(options: argparse.Namespace) -> Path:
    """Unit vectors; query n lies near passage n."""
    folder = options.output / "vectors"
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    passages = draw.standard_normal((options.passages, options.width)).astype(np.float32)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    noise = draw.standard_normal((options.queries, options.width)).astype(np.float32)
    queries = passages[: options.queries] + noise / np.float32(options.width**0.5)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    np.save(folder / "passages.npy", passages)
    np.save(folder / "queries.npy", queries)
    return folder


def run(options: argparse.Namespace, side: Side, task: str, given: list[str], python: str) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory (GB) of one process; it may fail, which its log tells."""
    folder = options.output / f"{side.name.replace(', ', '-')}-{task}"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    cache = {"HF_DATASETS_CACHE": str(folder) + "-cache"}
    environ = {**os.environ, **threads, **quiet, **cache, "PYTHONPATH": str(HERE.parent)}
    subprocess.run(["rm", "-rf", cache["HF_DATASETS_CACHE"]], check=True)
    command = [python, str(HERE / "mining_sides.py"), f"{side.side}-{task}", "--output", str(folder), *side.options, *given]
    log = Path(f"{folder}.log")
    with log.open("wb") as out:
        child = subprocess.Popen([*command, "--threads", str(options.threads)], stdout=out, stderr=subprocess.STDOUT, env=environ)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{side.name} failed, see {log}:\n{log.read_text('utf8', 'replace')[-2000:]}")
    said = json.loads(log.read_text("utf8", "replace").strip().splitlines()[-1])
    return {"seconds": said["seconds"], "cpu_seconds": said["cpu_seconds"], "memory_gb": used.ru_maxrss / 1e6}


def agreement(options: argparse.Namespace, side: Side, vectors: Path) -> float:
    """The share of each query's window that numpy's ranking has too."""
    whole = side._replace(options=(*side.options, "--whole-window"))
    run(options, whole, "vectors", ["--vectors", str(vectors)], sys.executable)
    folder = options.output / f"{side.name.replace(', ', '-')}-vectors"
    file = next(folder.glob("*.jsonl"))
    queries, passages = np.load(vectors / "queries.npy").astype(float), np.load(vectors / "passages.npy").astype(float)
    shares = []
    with file.open(encoding="utf8") as lines:
        for start in range(0, len(queries), 500):
            scores = queries[start : start + 500] @ passages.T
            for own, row in enumerate(scores):
                line = json.loads(next(lines))
                number = int(line["query"].split()[1])
                assert number == start + own, f"{side.name}: rows out of order"
                texts = line["neg"] if "neg" in line else [value for key, value in line.items() if key.startswith("negative_")]
                places = {int(text.split()[1]) for text in texts}
                # sentence-transformers takes the positive out before it counts ranks, the others after
                removed = {number} if side.side == "sentence-transformers" else set()
                shares.append(overlap(row, places, number, removed))
    return statistics.fmean(shares)


def overlap(scores: np.ndarray, places: set[int], positive: int, removed: set[int]) -> float:
    scores = scores.copy()
    scores[list(removed)] = -np.inf
    order = np.argpartition(-scores, LAST)[:LAST]
    order = order[np.argsort(-scores[order], kind="stable")][FIRST:]
    expected = len(set(order.tolist()) - {positive})
    low, high = scores[order[-1]] - WITHIN, scores[order[0]] + WITHIN
    return sum(low <= scores[place] <= high for place in places) / max(expected, len(places))


def report(task: str, found: dict[str, list[dict[str, float]]], agreements: dict[str, float]) -> None:
    medians = {
        name: [statistics.median(each[key] for each in runs) for key in ("seconds", "cpu_seconds", "memory_gb")]
        for name, runs in found.items()
    }
    ours = medians["bgetrain"]
    print(f"\n{task}\n\n| | s | CPU s | peak GB | ratios to bgetrain | agreement |\n|---|---|---|---|---|---|")
    for name, values in medians.items():
        ratios = ", ".join(f"{value / own:.2f}" for value, own in zip(values, ours, strict=True))
        agrees = f"{agreements[name]:.7f}" if name in agreements else ""
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + f" | {ratios} | {agrees} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
