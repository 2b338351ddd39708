"""What stage=plan foresees beside what real runs hold: peak memory on this machine's CPU, one process.

    python benchmarks/plan.py                 all cells; about 15 minutes on two busy cores, at most 4 GB at a time, Linux only
    python benchmarks/plan.py --only retromae
    python benchmarks/plan.py --allocator default

Each cell is a real command and the plan of the same overrides. Measured is `memory_gb` of metrics.jsonl (the peak of resident
memory) of the second step, less that of a run of a tiny model on two texts, which is what imports and tokenizer take. Texts are
as long as allowed, all of one length, so that batches hold what the plan says. The C library is told to give freed blocks back at
once; as it comes it keeps them, and the peak is the allocator's.
"""

import argparse
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 30522
PROMPT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


class Size(NamedTuple):
    """A BERT."""

    layers: int
    width: int
    heads: int


SIZES = {"4 x 256": Size(4, 256, 4), "6 x 512": Size(6, 512, 8), "12 x 768": Size(12, 768, 12)}
# (size, texts of a step, tokens of a chunk), with activations beside states
CONTRASTIVE = [("4 x 256", 64, 2048), ("6 x 512", 32, 1024), ("12 x 768", 8, 512)]
RETROMAE = [("4 x 256", 32, 4096), ("6 x 512", 16, 2048), ("12 x 768", 4, 512)]


class Cell(NamedTuple):
    """A run."""

    name: str
    size: str
    overrides: list[str]


def cells(folder: Path) -> Iterator[Cell]:
    """Every run of the table."""
    for (size, queries, tokens), mode, checkpointing in (
        (sizes, mode, on) for sizes in CONTRASTIVE for mode in ("single", "cached") for on in both(sizes[0])
    ):
        own = [f"global_batch={queries}", f"chunk_tokens={tokens}", f"step_mode={mode}"]
        yield Cell(f"pairs, {mode}", size, pairs(folder, size, own, checkpointing))
    for (size, texts, tokens), checkpointing in ((sizes, on) for sizes in RETROMAE for on in both(sizes[0])):
        own = [f"global_batch={texts}", f"chunk_tokens={tokens}"]
        yield Cell("retromae", size, retromae(folder, size, own, checkpointing))


def both(size: str) -> tuple[bool, ...]:
    """Whether layers are computed anew: both ways at one size."""
    return (False, True) if size == "6 x 512" else (False,)


def shared(folder: Path, size: str, checkpointing: bool) -> list[str]:
    return [
        f"model.path={folder / size.replace(' ', '')}", f"model.gradient_checkpointing={str(checkpointing).lower()}",
        "precision=fp32", "total_steps=3", "epochs=null", "log_every=1", "save_every=100",
        "preflight=false", "seed=1",
    ]  # fmt: skip


def pairs(folder: Path, size: str, own: list[str], checkpointing: bool) -> list[str]:
    data = ["data=jsonl", f"data.files=[{folder / 'pairs.jsonl'}]", "data.query_max_len=128", "data.passage_max_len=128"]
    return ["pairs", *shared(folder, size, checkpointing), *data, *own]


def retromae(folder: Path, size: str, own: list[str], checkpointing: bool) -> list[str]:
    data = ["data=text", f"data.files=[{folder / 'texts.jsonl'}]", "data.passage_max_len=256", "documents.cut=truncate"]
    return ["retromae", *shared(folder, size, checkpointing), *data, *own, "evaluate.held_out=0"]


def write(folder: Path) -> None:
    """Models of random weights, and texts of many words."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from bgetrain.data.tokenize import train_wordpiece

    draw = random.Random(1)
    words = [a + b + c for a in "bdfgkl" for b in "aeiou" for c in ("n", "r", "st")]
    texts = [" ".join(draw.choice(words) for _ in range(300)) for _ in range(400)]
    tokenizer = train_wordpiece(texts[:50], 200, 512)
    for name, size in {**SIZES, "tiny": Size(1, 32, 2)}.items():
        config = BertConfig(
            vocab_size=len(tokenizer) if name == "tiny" else VOCABULARY, hidden_size=size.width, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, intermediate_size=4 * size.width, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder / name.replace(" ", ""))
        tokenizer.save_pretrained(folder / name.replace(" ", ""))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts), "utf8")
    rows = [{"query": draw.choice(words) + " " + one, "pos": [other]} for one, other in zip(texts[::2], texts[1::2], strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), "utf8")


def command(words: list[str], allocator: dict[str, str]) -> None:
    """Runs bgetrain with two threads."""
    environment = os.environ | allocator | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-m", "bgetrain", *words], env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")


def measured(overrides: list[str], folder: Path, allocator: dict[str, str]) -> float:
    """Bytes at the peak, up to the second step."""
    stage, *others = overrides
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command([f"stage={stage}", *others, "num_processes=1", f"output_dir={output}/run"], allocator)
        lines = [json.loads(line) for line in (Path(output) / "run/metrics.jsonl").read_text("utf8").splitlines()]
    return float(next(line["memory_gb"] for line in lines if line["step"] == 2)) * 1e9


def foreseen(overrides: list[str]) -> dict[str, Any]:
    """The plan's figures."""
    stage, *others = overrides
    own = ["plan.gpu=cpu", "plan.gpus=1", "plan.padding=false", "plan.search=false", "plan.json=-"]
    from bgetrain import planning

    with contextlib.redirect_stdout(io.StringIO()) as said:
        planning.run(["stage=plan", f"plan.stage={stage}", *own, *others])
    figures: dict[str, Any] = json.loads(said.getvalue())["steps"][0]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--allocator", choices=["prompt", "default"], default="prompt", help="how freed blocks are given back")
    options = parser.parse_args()
    allocator = PROMPT if options.allocator == "prompt" else {}
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder)
        empty = {
            "pairs": pairs(folder, "tiny", ["global_batch=2", "chunk_tokens=128", "step_mode=single"], False),
            "retromae": retromae(folder, "tiny", ["global_batch=2", "chunk_tokens=256"], False),
        }
        chosen = {stage: each for stage, each in empty.items() if options.only in stage}
        nothing = {stage: measured(each, folder, allocator) - foreseen(each)["peak_bytes"] for stage, each in chosen.items()}
        print(f"imports, tokenizer and data: {', '.join(f'{stage} {size / 1e6:.0f} MB' for stage, size in nothing.items())}\n")
        print("| step | layers x width | checkpointing | chunks | foreseen MB | at | measured MB | foreseen / measured |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for cell in cells(folder):
            if options.only in cell.name:
                figures, found = foreseen(cell.overrides), measured(cell.overrides, folder, allocator)
                found -= nothing[cell.overrides[0]]
                on = "on" if "model.gradient_checkpointing=true" in cell.overrides else "off"
                print(
                    f"| {cell.name} | {cell.size} | {on} | {figures['chunks']} | {figures['peak_bytes'] / 1e6:,.0f} | "
                    f"{figures['peak_at']} | {found / 1e6:,.0f} | {figures['peak_bytes'] / found:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
