#!/usr/bin/env python3
"""Makes docs/results.md from the result files of finished runs: no figure of the page is typed by hand.

    python scripts/results.py add outputs/quickstart outputs/evaluate   # copies what the figures come from to docs/results/
    python scripts/results.py write                                     # makes the page of all that is there
    python scripts/results.py check                                     # exits 1 where the page is not what write would make

A run is kept under its folder's name: its result.json, config.yaml and provenance.json as they are, of a recipe those of each
step besides. Take one off the page by deleting its folder.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEPT = ("result.json", "config.yaml", "provenance.json")
METRICS = ("ndcg@10", "mrr@10", "recall@100")
HEAD = """# Results

Made by `python scripts/results.py write` from the files that runs have left. The number of a row leads to the file that it
stands in, its seed to the configuration that gives it again, its commit to the versions and the fingerprints of the data.
"""


def add(folders: list[str], docs: Path) -> None:
    """Copies the files of finished runs."""
    for folder in map(Path, folders):
        result = folder / "result.json"
        if not result.is_file():
            sys.exit(f"{folder}: no result.json in it; give the output folder of a finished evaluation or recipe")
        found = json.loads(result.read_text("utf8"))
        if not rows_of(found):
            what = f"{folder}: {found.get('stage')} has no figures of retrieval"
            sys.exit(f"{what}; give a run of stage=evaluate or a recipe with one")
        kept = docs / "results" / folder.absolute().name
        shutil.rmtree(kept, ignore_errors=True)
        for part in ("", *found.get("steps", {})):
            for name in KEPT:
                if (folder / part / name).is_file():
                    (kept / part).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / part / name, kept / part / name)
        print(f"{kept}: kept; now python scripts/results.py write")


def rows_of(result: dict[str, Any]) -> list[tuple[str, str, dict[str, float], dict[str, Any], str]]:
    """Name, data, metrics, intervals and step of each line that a result gives; none where it has no metrics."""
    if "ladder" in result:
        names = {step.removeprefix("evaluate-"): step for step in result["steps"]}
        found = [(rung["step"], names[rung["step"]]) for rung in result["ladder"] if METRICS[0] in rung]
        rows = [(rung, "", *figures(result["steps"][step]), step) for rung, step in found]
        with_bm25 = next((step for _, step in found if "bm25" in result["steps"][step]), None)
        return rows + ([("BM25", "", result["bm25"], {}, with_bm25)] if with_bm25 else [])
    if "queries" not in result or METRICS[0] not in result.get("metrics", {}):
        return []
    sets = result.get("sets", {})
    rows = [("model", name, *figures(each), "") for name, each in sets.items()]
    rows += [("BM25", name, each["bm25"], {}, "") for name, each in sets.items() if "bm25" in each]
    several = [("model", "mean", *figures(result), "")] if len(sets) != 1 else []
    return rows + several + ([("BM25", "mean", result["bm25"], {}, "")] if several and "bm25" in result else [])


def figures(result: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    return result["metrics"], result.get("intervals", {})


def page(docs: Path) -> str:
    """The whole page."""
    text = [HEAD]
    for path in sorted((docs / "results").glob("*/result.json")):
        result = json.loads(path.read_text("utf8"))
        rows = rows_of(result)
        data = any(row[1] for row in rows)
        columns = ["", *(["data"] if data else []), *METRICS, "seed", "commit"]
        text.append(f"\n## {path.parent.name}\n\n{told(path.parent, result)}\n")
        text += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for name, where, metrics, intervals, step in rows:
            link = f"results/{path.parent.name}/{step + '/' if step else ''}"
            cells = [name, *([where] if data else []), *(number(metrics, intervals, each, link) for each in METRICS)]
            text.append(f"| {' | '.join([*cells, *origin(path.parent / step, link)])} |")
    if len(text) == 1:
        text.append("\nNo run is kept yet: `python scripts/results.py add FOLDER`.")
    return "\n".join(text) + "\n"


def told(folder: Path, result: dict[str, Any]) -> str:
    if "ladder" in result:
        return f"`bgetrain recipe={result['stage'].removeprefix('recipe ')}`"
    config = yaml.safe_load((folder / "config.yaml").read_text("utf8"))
    size = f"{result['queries']:,} queries, {result['passages']:,} passages"
    return f"`bgetrain stage={result['stage']} model.path={config['model'].get('path')}`, split {config['data']['split']}: {size}"


def number(metrics: dict[str, float], intervals: dict[str, Any], name: str, link: str) -> str:
    low, high = intervals.get(name, (0, 0))
    width = f" ±{(high - low) / 2:.4f}" if name in intervals else ""
    return f"[{metrics[name]:.4f}]({link}result.json){width}"


def origin(folder: Path, link: str) -> list[str]:
    """Seed and commit of a run, as its files say."""
    seed = yaml.safe_load((folder / "config.yaml").read_text("utf8"))["seed"]
    known = json.loads((folder / "provenance.json").read_text("utf8"))
    code = known["git"][:7] if known.get("git") else known["packages"]["bgetrain"]  # an installed package has no commit
    return [f"[{seed}]({link}config.yaml)", f"[{code}]({link}provenance.json)"]


def main(given: list[str]) -> None:
    """Runs `add`, `write` or `check`."""
    parser = argparse.ArgumentParser(description="Makes docs/results.md from the result files of finished runs.")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of results.md and results/ (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="keep the files of finished runs")
    adding.add_argument("folders", nargs="+", metavar="FOLDER", help="output folder of an evaluation or a recipe")
    commands.add_parser("write", help="make the page of the runs that are kept")
    commands.add_parser("check", help="exit 1 where the page is not what write would make")
    asked = parser.parse_args(given)
    target = asked.docs / "results.md"
    if asked.command == "add":
        add(asked.folders, asked.docs)
    elif asked.command == "write":
        target.write_text(page(asked.docs), "utf8")
        print(f"wrote {target}")
    elif not target.is_file() or target.read_text("utf8") != page(asked.docs):
        sys.exit(f"{target} is not what {asked.docs / 'results'} gives: python scripts/results.py write")


if __name__ == "__main__":
    main(sys.argv[1:])
