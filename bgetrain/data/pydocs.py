"""The reader's own Python as a retrieval set: a docstring's first sentence finds the code that it describes.

Nothing is downloaded: the standard library and the installed packages hold thousands of such pairs. The task is
that of CodeSearchNet (Husain et al. 2019, arXiv:1909.09436), read off this machine.
"""

import difflib
import itertools
import json
import logging
import multiprocessing
import os
import platform
import shutil
import sysconfig
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bgetrain.data.docstrings import Pair, digest, dotted, read_chunk

logger = logging.getLogger(__name__)

FORMAT = 2  # raised when the rules below change, so that an old cache is not taken for a new one
CHUNK_FILES = 64  # small enough that the workers end together, large enough that pickling does not show
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}

TEST_ROWS, DEV_ROWS = 1500, 700  # but at most a quarter and an eighth of all rows
MODULE_SHARES = (0.2, 0.4, 0.8)  # largest part of a split that one module may fill: the first that fills the splits


def harvest(
    cache: Path, *, packages: list[str] | None, max_files: int, max_rows: int, max_characters: int, num_workers: int
) -> Path:
    """Finds, or writes once, the retrieval set of this installation's documented Python.

    Args:
        cache: receives one folder for each fingerprint of parameters, Python version and files.
        packages: top-level modules to read; None reads the standard library and all that is installed.
        max_files: most files read, > 0: a sample that is the same for the same installation.
        max_rows: most pairs kept over all splits, > 0: such a sample too.
        max_characters: where passages and pre-training texts are cut, > 0.
        num_workers: processes that parse, > 0; 1 parses in this process. The result does not depend on it.

    Returns:
        folder with `train/`, `dev/` and `test/` in BEIR layout (`corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`), whose
        passages are named `package/module.py:LINE`,
        `train/texts.jsonl` for pre-training and `harvest.json` with the counts. No top-level module, sentence or
        body stands on two sides.

    Raises:
        ValueError: a number is below 1, a package is not installed, or the pairs found do not fill three splits.
    """
    limits = {"max_files": max_files, "max_rows": max_rows, "max_characters": max_characters}
    for name, value in {**limits, "num_workers": num_workers}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    started = time.perf_counter()
    sources = _list_sources(packages, max_files)
    identity = [FORMAT, platform.python_version(), packages and sorted(set(packages)), limits]
    identity.append(sorted((relative, os.path.getsize(path)) for relative, path in sources))
    target = Path(cache) / digest(json.dumps(identity)).hex()[:16]
    if target.is_dir():
        return target

    logger.info("reading the docstrings and code of %d Python files into %s", len(sources), target)
    found, num_skipped = _read_all(sources, max_characters, num_workers)
    unique = _drop_duplicates(found)
    kept = sorted(unique, key=lambda pair: digest(f"{pair.title}:{pair.line}"))[:max_rows]
    splits = _split_by_module(kept)
    counts = {
        "files_read": len(sources) - num_skipped,
        "files_skipped": num_skipped,
        "pairs_found": len(found),
        "duplicates_dropped": len(found) - len(unique),
        "rows": {split: len(pairs) for split, pairs in splits.items()},
        "modules": {split: len({_module(pair.title) for pair in pairs}) for split, pairs in splits.items()},
        "seconds": round(time.perf_counter() - started, 2),
    }
    _publish(target, splits, counts)
    logger.info("wrote %s: %s", target, counts)
    return target


def installed(name: str) -> str:
    """The `FILE:LINE` of a passage's name, `package/module.py:12`, in this installation; the name where it has no such file."""
    return next((f"{root}/{name}" for root in _roots() if os.path.isfile(f"{root}/{name.rpartition(':')[0]}")), name)


def _roots() -> list[str]:
    """Where this installation's Python is; of a file in two of them the first is imported."""
    return list(dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")))


def _list_sources(packages: list[str] | None, max_files: int) -> list[tuple[str, str]]:
    """Lists (path under its root, path) of the files to read, in the order of the former's hash: a cap is a sample."""
    sources: dict[str, str] = {}
    for root in _roots():
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name.isidentifier() and name not in SKIPPED_FOLDERS]
            for name in files:
                path = os.path.join(folder, name)
                if name.endswith(".py") and not name.startswith(("test_", "conftest.")) and os.path.isfile(path):
                    # setdefault: the first root wins, as it does for an import
                    sources.setdefault(path[len(root) + 1 :].replace(os.sep, "/"), path)
    if packages is not None:
        installed = sorted({_module(dotted(relative)) for relative in sources})
        for name in packages:
            if name not in installed:
                near = ", ".join(difflib.get_close_matches(name, installed, cutoff=0.4)) or "none"
                raise ValueError(f"packages: {name!r} is not an installed top-level module; nearest names: {near}")
        sources = {key: path for key, path in sources.items() if _module(dotted(key)) in packages}
    return sorted(sources.items(), key=lambda source: digest(source[0]))[:max_files]


def _read_all(sources: list[tuple[str, str]], max_characters: int, num_workers: int) -> tuple[list[Pair], int]:
    """Reads all pairs, in an order that num_workers does not change, and counts the files that do not parse."""
    chunks = [sources[start : start + CHUNK_FILES] for start in range(0, len(sources), CHUNK_FILES)]
    num_workers = min(num_workers, len(chunks))
    if num_workers < 2 or multiprocessing.current_process().daemon:  # a daemon may not have children
        results = [read_chunk(chunk, max_characters) for chunk in chunks]
    else:
        # not fork: the caller may have threads running and torch loaded
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
            results = list(pool.map(read_chunk, chunks, itertools.repeat(max_characters)))
    return [pair for pairs, _ in results for pair in pairs], sum(skipped for _, skipped in results)


def _drop_duplicates(found: list[Pair]) -> list[Pair]:
    """Keeps one of the pairs that share a sentence, body or text: the shallowest, which is not the vendored copy."""
    seen: set[bytes] = set()
    kept = []
    for pair in sorted(found, key=lambda pair: (pair.title.count("."), pair.title, pair.line)):
        if seen.isdisjoint(pair.keys):
            seen.update(pair.keys)
            kept.append(pair)
    return kept


def _split_by_module(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """Deals top-level modules, ordered by hash, to test and then dev until they are full; the rest is train.

    A module that would fill too much of test or dev goes to train. Where what is left does not fill them (few
    packages are read), larger modules are let in, and at last any that holds no more than a third of all rows.

    Raises:
        ValueError: no pairs, or too few modules for three splits.
    """
    counts = Counter(_module(pair.title) for pair in pairs)
    rows = {"test": min(TEST_ROWS, len(pairs) // 4), "dev": min(DEV_ROWS, len(pairs) // 8)}
    for share in (*MODULE_SHARES, None):
        places: dict[str, str] = dict.fromkeys(counts, "train")
        filled: Counter[str] = Counter()
        for module in sorted(counts, key=digest):
            for split, size in rows.items():
                largest = size * share if share else len(pairs) / 3
                if filled[split] < size and counts[module] <= largest:
                    places[module] = split
                    filled[split] += counts[module]
                    break
        if all(filled[split] >= size for split, size in rows.items()):
            break
    splits: dict[str, list[Pair]] = {"train": [], "dev": [], "test": []}
    for pair in pairs:
        splits[places[_module(pair.title)]].append(pair)
    if not all(splits.values()):
        found = f"{len(pairs)} documented definitions in {len(counts)} top-level modules"
        raise ValueError(f"packages: {found} do not fill train, dev and test; name more packages, or null for all")
    return splits


def _publish(target: Path, splits: dict[str, list[Pair]], counts: dict[str, object]) -> None:
    """Writes the set beside its place and moves it there whole; the first of two processes wins."""
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        for split, pairs in splits.items():
            (unfinished / split / "qrels").mkdir(parents=True)
            names = [f"{pair.file}:{pair.line}" for pair in pairs]
            rows = [{"_id": name, "title": pair.title, "text": pair.text} for name, pair in zip(names, pairs, strict=True)]
            _write_jsonl(unfinished / split / "corpus.jsonl", rows)
            rows = [{"_id": f"q{row}", "text": pair.sentence} for row, pair in enumerate(pairs)]
            _write_jsonl(unfinished / split / "queries.jsonl", rows)
            judged = "".join(f"q{row}\t{name}\t1\n" for row, name in enumerate(names))
            qrels = unfinished / split / "qrels" / f"{split}.tsv"
            qrels.write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
        texts = ({"text": text} for pair in splits["train"] for text in (pair.docstring, pair.text))
        _write_jsonl(unfinished / "train" / "texts.jsonl", texts)
        (unfinished / "harvest.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _module(title: str) -> str:
    return title.partition(".")[0]
