"""A folder in which any recipe runs offline: generated rows of every named set and tiny models, each under its hub id."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from named import CASES, write

from bgetrain import selection

ROWS = 34  # of each row of `named.CASES`
ENGLISH = ["fox", "whale", "frog", "owl", "cat", "dog", "river", "stone", "cloud", "tree", "red", "blue", "old", "wild", "deep"]
CHINESE = list("的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过")
# hub id -> width, layers, heads of the tiny one: those of the true one over 16 and over 6, so that each size stays another
MODELS = {
    "google-bert/bert-base-uncased": (48, 2, 2),
    "google-bert/bert-large-uncased-whole-word-masking": (64, 4, 2),
    "microsoft/MiniLM-L12-H384-uncased": (24, 2, 2),
    "hfl/chinese-roberta-wwm-ext": (48, 2, 2),
    "hfl/chinese-roberta-wwm-ext-large": (64, 4, 2),
    "uer/chinese_roberta_L-4_H-512": (32, 1, 2),
    "shibing624/text2vec-base-chinese": (48, 2, 2),
    "Shitao/RetroMAE": (48, 2, 2),
    "BAAI/bge-base-en-v1.5": (48, 2, 2),
}


def fill(folder: Path) -> None:
    """Writes everything into `folder`, which is then to be the working directory."""
    for option, case in CASES.items():
        node = yaml.safe_load((selection.CONF / "data" / f"{option}.yaml").read_text("utf8"))
        words = CHINESE if any(part in option for part in ("zh", "wudao", "csl", "cmrc", "dureader", "t2", "ocnli")) else ENGLISH
        for name, rows in case.files.items():
            place = folder / node.get("path", option) / name
            many = [varied(row, random.Random(f"{option} {number}"), words) for number in range(ROWS) for row in rows]
            write(place, many)
    for mixture in ("pairs-en", "supervised-zh"):  # whose sources are of an option with another file, or another path
        for name, source in yaml.safe_load((selection.CONF / f"data/{mixture}.yaml").read_text("utf8"))["sources"].items():
            if source["data"] == "embedding-training-data":
                rows = [varied(["q", "p"], random.Random(f"{name} {number}"), ENGLISH) for number in range(ROWS)]
                write(folder / "sentence-transformers/embedding-training-data" / source["files"], rows)
            elif source["data"] == "nli-zh" and not (folder / source["path"]).exists():
                (folder / source["path"]).symlink_to(folder / "C-MTEB/LCQMC")
    for place in (folder, folder / "evaluation", folder / "beir"):  # ablations read the working directory itself
        write_beir(place)
    own = [{"query": f"where is {word} {number}", "pos": [f"the {word} {number} sleeps"]} for number, word in numbered(40)]
    write(folder / "my.jsonl", own)
    write(folder / "pairs.jsonl.gz", own)
    for name, shape in MODELS.items():
        write_model(folder / name, *shape)


def numbered(count: int) -> Iterable[tuple[int, str]]:
    return ((number, ENGLISH[number % len(ENGLISH)]) for number in range(count))


def varied(value: Any, draw: random.Random, words: list[str]) -> Any:
    """A row with other texts; numbers, labels among them, stay."""
    if isinstance(value, str):
        return f"{value} {(' ' if words is ENGLISH else '').join(draw.choices(words, k=6))}"
    if isinstance(value, list):
        return [varied(each, draw, words) for each in value]
    return {key: varied(each, draw, words) for key, each in value.items()} if isinstance(value, dict) else value


def write_beir(folder: Path) -> None:
    rows = list(numbered(24))
    write(folder / "corpus.jsonl", [{"_id": f"p{n}", "title": "", "text": f"the {word} {n} sleeps"} for n, word in rows])
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"where is {word} {n}"} for n, word in rows])
    for split, part in (("train", rows[:16]), ("test", rows[16:])):
        path = folder / "qrels" / f"{split}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\tp{n}\t1\n" for n, _ in part))


def write_model(folder: Path, width: int, layers: int, heads: int) -> None:
    """A BERT of random weights with a vocabulary of letters, of the characters above, and of the words above."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(97, 123)] + list("0123456789.:,")
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{each}" for each in letters), *ENGLISH, *CHINESE]
    (folder / "vocab.txt").write_text("\n".join(known), "utf8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(width)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 2 * width}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)).save_pretrained(folder)


def scaled(overrides: list[str]) -> list[str]:
    """The overrides of a step at a thousandth of its batch, 12 at least, for one update, on a CPU."""
    small, keys = [], {each.partition("=")[0]: each for each in overrides}
    for each in overrides:
        key, _, value = each.partition("=")
        if key == "global_batch":
            each = f"{key}={max(12, int(value) // 1000)}"
        elif key in ("total_steps", "epochs"):
            continue
        elif key == "precision":
            each = "precision=fp32"  # DeepSpeed has no fp16 on a CPU
        elif key in ("evaluate.every", "evaluate.held_out", "log_every"):
            each = f"{key}=1"
        small.append(each)
    if "data=pydocs" in overrides:
        small += [
            "data.packages=[asyncio,email,http,unittest,xml]",
            "data.max_rows=400",
            "data.num_workers=1",
            "data.cache=harvest",
        ]
    if "stage=check" in overrides:
        small += ["check.num_workers=1"]
    if any(f"stage={stage}" in overrides for stage in ("retromae", "pairs", "finetune")):
        small += ["total_steps=1", "epochs=null"]
    if "model.hidden_size" in keys:
        small += ["model.hidden_size=32", "model.num_heads=2", "model.num_layers=1"]
    return small
