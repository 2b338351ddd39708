"""Exact search at scale: time, peak memory of each rank, and agreement with brute force, beside faiss and sentence-transformers.

    python benchmarks/search.py                                    1,000,000 passages x 128, 10,000 queries, the best 200
    python benchmarks/search.py --passages 100000 --queries 1000   less of it

Each run is a process of its own (one for each rank), one after the other, and prints a row of a Markdown table. Vectors are
random, of length 1, in files as `stage=mine` keeps embeddings; the peers get them as one array in memory, as they want them.
Memory is the peak of resident memory above what the process had before it opened the vectors; CPU seconds are those of all
threads and ranks, which a machine that others use stretches less; agreement is the share of brute force's best that was found.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CHECKED = 100  # queries that are compared with brute force


def main() -> None:
    """Runs all, or, as a child, one rank of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--top", type=int, default=200)
    parser.add_argument("--query-block", type=int, default=512)
    parser.add_argument("--passage-block", type=int, default=4096)
    parser.add_argument("--only", default="exact-1,exact-2,ivf-1,faiss,sentence-transformers")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options, options.child[0], Path(options.child[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(options, folder)
        truth = brute_force(options, folder)
        print(f"{options.queries:,} queries, {options.passages:,} passages x {options.width}, the best {options.top}\n")
        print("| search | ranks | s | of exact on 1 rank | CPU s | of exact on 1 rank | peak MB of each rank | agreement |")
        print("|---|---|---|---|---|---|---|---|")
        first = None
        for each in options.only.split(","):
            found = run(options, folder, each)
            first = first or found
            ratios = [found[key] / first[key] for key in ("seconds", "cpu_seconds")]
            agreement = np.mean([np.isin(one, other).mean() for one, other in zip(truth, found["places"], strict=True)])
            peaks = ", ".join(f"{peak / 1e6:,.0f}" for peak in found["peaks"])
            name, _, ranks = each.rpartition("-") if each[-1].isdigit() else (each, "", "1")
            times = f"{found['seconds']:.1f} | {ratios[0]:.2f} | {found['cpu_seconds']:.0f} | {ratios[1]:.2f}"
            print(f"| {name} | {ranks} | {times} | {peaks} | {agreement:.4f} |", flush=True)


def make(options: argparse.Namespace, folder: Path) -> None:
    """Writes the vectors in blocks, in files of bgetrain's, and as one array for the peers."""
    from bgetrain.search import shards

    for name, total in (("passages", options.passages), ("queries", options.queries)):
        whole = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (total, options.width))
        for number, start in enumerate(range(0, total, shards.BLOCK)):
            draw = np.random.default_rng([total, number])
            rows = draw.standard_normal((min(shards.BLOCK, total - start), options.width), dtype=np.float32)
            whole[start : start + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            shards.save(folder / name / f"{number}.npy", whole[start : start + len(rows)])


def brute_force(options: argparse.Namespace, folder: Path) -> np.ndarray:
    """The best of the first queries by numpy in float64, a block of the corpus at a time."""
    passages, queries = np.load(folder / "passages.npy", "r"), np.load(folder / "queries.npy")[:CHECKED].astype(np.float64)
    scores = np.concatenate([queries @ passages[at : at + 65536].T for at in range(0, len(passages), 65536)], axis=1)
    return np.argsort(-scores, axis=1, kind="stable")[:, : options.top]


def run(options: argparse.Namespace, folder: Path, each: str) -> dict[str, Any]:
    """Starts a process for each rank; returns the slowest's seconds, each one's peak and the places found."""
    size = int(each[-1]) if each[-1].isdigit() else 1
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sizes = {name: getattr(options, name) for name in ("passages", "queries", "width", "top", "query_block", "passage_block")}
    words = [part for name, value in sizes.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)) // size), "OMP_WAIT_POLICY": "passive"}
    started = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **threads, **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, __file__, *words, "--child", each, str(folder)]
        started.append(subprocess.Popen(command, env=environment))
    if any(process.wait() for process in started):
        raise SystemExit(f"{each} failed")
    facts = [json.loads((folder / f"{each}.{rank}.json").read_text("utf8")) for rank in range(size)]
    places = np.concatenate([np.load(folder / f"{each}.{rank}.npy") for rank in range(size)])[:CHECKED]
    seconds = {"seconds": max(fact["seconds"] for fact in facts), "cpu_seconds": sum(fact["cpu_seconds"] for fact in facts)}
    return {**seconds, "peaks": [fact["peak"] for fact in facts], "places": places}


def child(options: argparse.Namespace, name: str, folder: Path) -> None:
    """One rank of one search: writes its figures and the places that it found."""
    import torch

    from bgetrain import distributed

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = distributed.start(rank, size, rank, size, 60.0)
    search = {"exact": exact, "ivf": ivf, "faiss": by_faiss, "sentence-transformers": by_sentence_transformers}[
        name.rstrip("-12348")
    ]
    find = search(options, folder, world)
    distributed.barrier(world)
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    began, began_cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        found = find()
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    facts = {**seconds, "peak": resident("VmHWM") - before}
    places = found if isinstance(found, np.ndarray) else [[each["corpus_id"] for each in row] for row in found]
    np.save(folder / f"{name}.{rank}.npy", places)
    (folder / f"{name}.{rank}.json").write_text(json.dumps(facts), "utf8")
    distributed.barrier(world)
    os._exit(0)


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process in memory; VmHWM: at the most."""
    lines = Path("/proc/self/status").read_text("utf8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def opened(folder: Path, name: str, total: int, width: int, world: Any) -> Any:
    from bgetrain.search import shards

    return shards.Embeddings(
        total, width, shards.part_of(total, world), lambda number: shards.mapped(folder / name / f"{number}.npy")
    )


def ours(options: argparse.Namespace, folder: Path, world: Any, search: Any, **more: Any) -> Any:
    both = [opened(folder, name, getattr(options, name), options.width, world) for name in ("queries", "passages")]
    return lambda: search(*both, options.top, query_block=options.query_block, world=world, advance=lambda _: None, **more).places


def exact(options: argparse.Namespace, folder: Path, world: Any) -> Any:
    from bgetrain.search import exact as module

    return ours(options, folder, world, module.exact, passage_block=options.passage_block)


def ivf(options: argparse.Namespace, folder: Path, world: Any) -> Any:
    import faiss  # noqa: F401 (its memory is not the search's)

    from bgetrain.search import index

    return ours(options, folder, world, index.ivf, num_lists=None, num_probes=32, recall_sample=200, seed=0)


def by_faiss(options: argparse.Namespace, folder: Path, world: Any) -> Any:
    import faiss

    def find() -> np.ndarray:
        made = faiss.IndexFlatIP(options.width)
        made.add(np.load(folder / "passages.npy"))
        return made.search(np.load(folder / "queries.npy"), options.top)[1]

    return find


def by_sentence_transformers(options: argparse.Namespace, folder: Path, world: Any) -> Any:
    import torch
    from sentence_transformers.util import dot_score, semantic_search

    def find() -> list[list[dict[str, Any]]]:
        queries, passages = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("queries", "passages"))
        return semantic_search(queries, passages, top_k=options.top, score_function=dot_score)

    return find


if __name__ == "__main__":
    main()
