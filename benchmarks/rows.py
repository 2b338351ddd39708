"""Opening and taking rows of a large cached set: seconds and memory of one process, and of two at once.

    python benchmarks/rows.py --rows 200000000 --folder FOLDER
    python benchmarks/rows.py --read 1000000 --folder FOLDER   # from jsonl to the cache, by number of processes

The rows of the first are synthetic and short, and written as Arrow in the cache's own form and place, not read from jsonl:
what is measured is `data=jsonl` once it is cached. FOLDER receives about 70 bytes a row and can be removed afterwards.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

FILES = 256
ROWS_OF_A_TAKE = 1024
KEYS = ("Rss:", "Pss:", "Pss_Anon:")
QUERY, PASSAGE = "query 000000000", "passage 000000000"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000_000)
    parser.add_argument("--read", type=int, default=0, help="rows of a jsonl file to read into the cache instead")
    parser.add_argument("--takes", type=int, default=1000, help=f"of {ROWS_OF_A_TAKE} random rows")
    parser.add_argument("--folder", type=Path, required=True, help="receives the rows and the cache")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    import datasets

    datasets.config.HF_DATASETS_CACHE = options.folder / "cache"
    if options.read:
        read(options.read, options.folder)
        return
    folder = generate(options.rows, options.folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{options.rows:,} rows, {size:,} bytes in {FILES} files ({size / options.rows:.0f} a row)", flush=True)
    for processes in (1, 2):
        for figures in together(processes, options.takes, options.folder):
            print(processes, "at once:", json.dumps(figures), flush=True)


def source(folder: Path) -> Any:
    from bgetrain.data import rows

    return rows.jsonl(
        [str(folder / "rows.jsonl")], columns={}, labels=None, corpus=None, on_bad_row="stop", query_max_len=32,
        passage_max_len=64, query_instruction="", missing_negatives="random", split="train",
    )  # fmt: skip


def generate(count: int, folder: Path) -> Path:
    """Writes the cache that reading `count` rows of `folder/rows.jsonl` would leave, unless it is there."""
    from bgetrain.data import rows, store
    from bgetrain.data.records import Reading

    path = folder / "rows.jsonl"
    if not path.exists():
        path.write_text("the rows stand in the cache\n")
    target = rows.cache_folder(Reading("rows", [str(path)], None, {}, None, None), "stop")
    if target.is_dir():
        return target
    from bgetrain.data.make import BATCH_CHARACTERS

    beside = target.with_name("generating")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    most = BATCH_CHARACTERS // (len(QUERY) + len(PASSAGE) + 64)
    edges = np.linspace(0, count, FILES + 1).astype(int).tolist()
    began, batches = time.perf_counter(), []
    for file, (first, last) in enumerate(itertools.pairwise(edges)):
        batches += write(beside / f"{file:05d}.arrow", range(first, last), most)
    meta = {"notes": [], "places": [[str(path), "lines", 0]], "batches": batches}
    (beside / store.META).write_text(json.dumps(meta))
    beside.rename(target)
    print(f"generated in {time.perf_counter() - began:.0f} s")
    return target


def write(path: Path, numbers: range, most: int) -> list[int]:
    import pyarrow

    from bgetrain.data import store

    form, counts = store.schema("rows"), []
    with pyarrow.ipc.new_file(str(path), form) as file:
        for first in range(numbers.start, numbers.stop, most):
            chosen = np.arange(first, min(first + most, numbers.stop))
            n = len(chosen)
            one = pyarrow.array(np.arange(n + 1, dtype=np.int32))
            columns = [
                texts(QUERY, chosen),
                pyarrow.ListArray.from_arrays(one, texts(PASSAGE, chosen)),
                *(pyarrow.nulls(n, form.field(name).type) for name in ("neg", "prompt", "pos_scores", "neg_scores")),
                pyarrow.array(np.zeros(n, np.int32)),
                pyarrow.array((chosen + 1).astype(np.int32)),
            ]
            file.write_batch(pyarrow.record_batch(columns, schema=form))
            counts.append(n)
    return counts


def texts(form: str, numbers: np.ndarray) -> Any:
    """`form` for each number, its last nine characters the number."""
    import pyarrow

    made = np.tile(np.frombuffer(form.encode(), np.uint8), (len(numbers), 1))
    for place in range(9):
        made[:, -1 - place] = 48 + numbers // 10**place % 10
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * len(form)
    return pyarrow.StringArray.from_buffers(len(numbers), pyarrow.py_buffer(offsets), pyarrow.py_buffer(made))


def together(processes: int, takes: int, folder: Path) -> list[dict[str, float]]:
    """The figures of processes that open and take at the same time, each rows of its own."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    started = [context.Process(target=measure, args=(folder, takes, seed, barrier, answers)) for seed in range(processes)]
    for each in started:
        each.start()
    found = [answers.get() for _ in started]
    for each in started:
        each.join()
    return found


def measure(folder: Path, takes: int, seed: int, barrier: Any, answers: Any) -> None:
    import datasets

    import bgetrain.data.rows  # noqa: F401

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    figures = {"rss_mb_before": memory()["Rss"]}
    barrier.wait()
    began = time.perf_counter()
    rows = source(folder).rows()
    first = rows.take([len(rows) // 2])[0]
    figures["open_seconds"] = round(time.perf_counter() - began, 3)  # with a first row, which maps the files
    assert first.query == f"{QUERY[:-9]}{len(rows) // 2:09d}", first
    figures["rss_mb_open"] = memory()["Rss"]
    draw = np.random.default_rng(seed)
    barrier.wait()
    began, most = time.perf_counter(), 0.0
    read_before = bytes_read()
    for number in range(takes):
        rows.take(draw.integers(0, len(rows), ROWS_OF_A_TAKE).tolist())
        if number % 20 == 0:
            most = max(most, memory()["Rss"])
    figures["disk_mb_a_take"] = round((bytes_read() - read_before) / takes / 1e6, 2)
    figures["milliseconds_a_take"] = round((time.perf_counter() - began) / takes * 1e3, 1)
    barrier.wait()  # all are open, and have read
    now = memory()
    barrier.wait()
    answers.put(
        {
            **figures,
            "rss_mb_highest_seen": most,
            "rss_mb_after": now["Rss"],
            "pss_mb_after": now["Pss"],
            "private_mb_after": now["Pss_Anon"],
        }
    )


def memory() -> dict[str, float]:
    """MB of this process: resident, and with each shared page counted in parts."""
    cells = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return {cell[0][:-1]: round(int(cell[1]) * 1024 / 1e6) for cell in cells if cell[0] in KEYS}


def bytes_read() -> int:
    """What this process had the disk read; 0 where all was in the system's cache of files."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def read(count: int, folder: Path) -> None:
    """Seconds from jsonl to the cache, and the first opening after that."""
    from bgetrain.data import make

    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for number in range(count):
            row = {"query": f"{QUERY[:-9]}{number:09d}", "pos": [f"{PASSAGE[:-9]}{number:09d} " + "word " * 40]}
            file.write(json.dumps(row) + "\n")
    print(f"{count:,} rows, {path.stat().st_size:,} bytes of jsonl")
    for processes in sorted({1, len(os.sched_getaffinity(0))}):
        make.MOST_PROCESSES = processes
        shutil.rmtree(folder / "cache", ignore_errors=True)
        began = time.perf_counter()
        rows = source(folder).rows()
        seconds = time.perf_counter() - began
        print(f"{processes} processes: {seconds:.1f} s, {len(rows) / seconds:,.0f} rows/s")
        began = time.perf_counter()
        source(folder).rows()
        print(f"opened again in {time.perf_counter() - began:.3f} s")


if __name__ == "__main__":
    main()
