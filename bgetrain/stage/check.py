"""stage=check: all rows of a data set read once, and what is wrong with them as `report.json` and `report.html`."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bgetrain import output
from bgetrain.data.check_kinds import kind_of
from bgetrain.data.files import fingerprint
from bgetrain.logger import console, page
from bgetrain.model.body import load_tokenizer
from bgetrain.target import call
from bgetrain.types import World

SCRATCH = ".check-"  # what a worker leaves where it is killed begins so
COLUMNS = ("found", "severity", "rows", "%", "first place")


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Checks the data of `cfg.data` and writes the report.

    Args:
        cfg: the resolved config, as `conf/stage/check.yaml` has it.
        world: one rank; the work is divided by `check.num_workers`.
        log: called with the counts, as step 0.

    Returns:
        Figures for `result.json`: rows, usable rows, how often each kind was found.

    Raises:
        ValueError: several ranks, data that cannot be opened, or with `check.strict` the first row found unusable or harmful;
            the report is written by then.
    """
    began = time.perf_counter()
    if world.size > 1:
        raise ValueError(
            f"stage=check runs on one rank, got {world.size}: set num_processes=1, and check.num_workers as you like"
        )
    folder = Path(cfg["output_dir"])
    open_source = partial(call, cfg["data"])
    output.add_fingerprints(cfg["output_dir"], "data", fingerprint(open_source().files), cfg["resume"])
    name = cfg["model"].get("tokenizer") or cfg["model"].get("path")
    trust = {"trust_remote_code": cfg["model"].get("trust_remote_code", False)}
    if name:
        load_tokenizer(name, **trust)  # a wrong one is told before the workers start
    measured = f"tokens of {name}" if name else "estimate: a hanzi, kana or hangul one token, four other characters one"
    for left in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        tokenizer = partial(load_tokenizer, name, **trust) if name else None
        report = call(cfg["check"], open_source, tokenizer, measured, cfg["seed"], Path(scratch), console.track)
    refusal = report.pop("refusal")
    output.write(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
    output.write(folder / "report.html", page.check_page(report))
    figures = {"rows": report["rows"], "usable_rows": report["usable_rows"], **report["counts"]}
    log(0, figures)
    for source in report["sources"]:
        show(source)
    last = verdict(report)
    print(f"{last}; see {folder / 'report.html'} and report.json", flush=True)
    if refusal:
        raise ValueError(f"check.strict=true: {refusal}")
    return {"rows": report["rows"], "usable_rows": report["usable_rows"], "counts": report["counts"], "verdict": last,
            "seconds": time.perf_counter() - began}  # fmt: skip


def show(source: Mapping[str, Any]) -> None:
    """Prints what was found in a source, with the first place of each kind."""
    rows = [
        [kind, found["severity"], found["count"], f"{100 * found['ratio']:.2f}", found["places"][0]]
        for kind, found in source["kinds"].items()
    ]
    title = f"{source['data']}: {source['rows']:,} rows, {source['usable_rows']:,} usable"
    if rows:
        console.table(title, COLUMNS, rows)
    else:
        print(f"{title}, nothing found")
    for name, lengths in source["lengths"].items():
        limit = f"data.{'query' if name == 'query' else 'passage'}_max_len={lengths['limit']}"
        cut = f"{limit} cuts {100 * lengths['cut_ratio']:.2f} % of them and {100 * lengths['lost_ratio']:.2f} % of all tokens"
        how = " (estimated: give model.path for exact numbers)" if lengths["measured"].startswith("estimate") else ""
        print(f"  {name}: {lengths['mean']:.1f} tokens on average, {lengths['longest']:,} the longest; {cut}{how}")


def verdict(report: Mapping[str, Any]) -> str:
    """The check in one line."""
    unusable = report["rows"] - report["usable_rows"]
    harmful = sum(count for kind, count in report["counts"].items() if kind_of(kind).severity == "harmful")
    if not unusable and not harmful:
        return f"check done: all {report['rows']:,} rows can be used, and none is known to harm"
    return f"check done: {unusable:,} of {report['rows']:,} rows cannot be used, {harmful:,} findings harm training or evaluation"
