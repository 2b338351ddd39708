"""Small data sets of tasks of MTEB in the layout of the hub."""

import json
import random
from pathlib import Path
from typing import Any

from conftest import WORDS, sentence

Rows = list[dict[str, Any]]


def write_set(folder: Path, files: dict[str, Rows]) -> None:
    """A data set as the hub has it: `CONFIG/SPLIT.jsonl`, and a README that says which is which."""
    lines = ["---", "configs:"]
    for name, rows in files.items():
        config, split = name.split("/")
        if f"- config_name: {config}" not in lines:
            lines += [f"- config_name: {config}", "  data_files:"]
        lines += [f"  - split: {split}", f"    path: {name}.jsonl"]
        (folder / config).mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), "utf8")


def searched(passages: int, queries: int, *, judged: int, candidates: int) -> dict[str, Rows]:
    """A corpus, queries that begin as a passage does, and which are relevant."""
    corpus = [{"_id": f"d{n}", "title": WORDS[n % 90], "text": sentence(n, 12)} for n in range(passages)]
    asked = [{"_id": f"q{n}", "text": " ".join(sentence(n, 12).split()[:3])} for n in range(queries)]
    pairs = [
        {"query-id": f"q{n}", "corpus-id": f"d{(n + k) % passages}", "score": 1} for n in range(queries) for k in range(judged)
    ]
    found = {"corpus/corpus": corpus, "queries/queries": asked, "default/test": pairs}
    if candidates:
        near = [[f"d{(n + k) % passages}" for k in range(candidates)] for n in range(queries)]
        found["top_ranked/test"] = [{"query-id": f"q{n}", "corpus-ids": each} for n, each in enumerate(near)]
    return found


def labelled(count: int, first: int) -> Rows:
    """Texts of four classes, of which each has words that it has more often than the others."""
    draw = random.Random(first)
    return [
        {"text": " ".join([*draw.choices(WORDS[20 * (n % 4) : 20 * (n % 4) + 20], k=2), sentence(first + n, 4)]), "label": n % 4}
        for n in range(count)
    ]


def write_hub(root: Path) -> Path:
    """Data sets of seven tasks, one of each type that MTEB's papers have, at ROOT/ORG/NAME."""
    folder = root / "mteb"
    pairs = [(sentence(n, 8), f"{sentence(n, 8)} {sentence(50 + n, 1 + n % 7)}") for n in range(30)]
    write_set(folder / "scifact", searched(60, 20, judged=2, candidates=0))
    write_set(folder / "CMedQAv1-reranking", searched(40, 12, judged=2, candidates=8))
    rows = [{"sentence1": one, "sentence2": other, "score": float(6 - n % 7)} for n, (one, other) in enumerate(pairs)]
    write_set(folder / "biosses-sts", {"default/test": rows})
    both = [{"sent1": one, "sent2": other, "labels": int(n % 7 < 3)} for n, (one, other) in enumerate(pairs)]
    write_set(root / "C-MTEB" / "OCNLI", {"default/validation": both})
    write_set(folder / "banking77", {"default/train": labelled(48, 300), "default/test": labelled(24, 700)})
    blocks = [labelled(40, 900 + 100 * n) for n in range(2)]
    lists = [{"sentences": [row["text"] for row in block], "labels": [row["label"] for row in block]} for block in blocks]
    write_set(folder / "twentynewsgroups-clustering", {"default/test": lists})
    summaries = [
        {
            "text": sentence(n, 12),
            "human_summaries": [sentence(n + 70 + k, 6) for k in range(3)],
            "machine_summaries": [sentence(n + 80 + k, 6) for k in range(4)],
            "relevance": [1.0 + (n + k) % 4 for k in range(4)],
        }
        for n in range(5)
    ]
    write_set(folder / "summeval", {"default/test": summaries})
    return root
