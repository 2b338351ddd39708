"""What the tests of stage=mine share: how it is run, and what transformers alone says of scores and ranks."""

import json
from typing import Any

import numpy as np
import torch


def run(world, overrides: list[str]) -> dict[str, Any]:
    from ranks import run_stage

    return run_stage(world, ["stage=mine", *overrides])


def mined(model_folder, output, *more: str) -> list[str]:
    lengths = ["data.query_max_len=32", "data.passage_max_len=32"]
    window = ["mine.first=2", "mine.last=12", "mine.number=4"]
    return [f"model.path={model_folder}", f"output_dir={output}", "chunk_tokens=100", *lengths, *window, *more]


def written(output) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "train.jsonl").read_text("utf8").splitlines()]


def texts_of(beir_folder) -> dict[str, str]:
    lines = [json.loads(line) for line in (beir_folder / "corpus.jsonl").read_text().splitlines()]
    return {line["_id"]: f"{line['title']} {line['text']}".strip() for line in lines}


def queries_of(beir_folder) -> list[str]:
    """Of the train split."""
    return [json.loads(line)["text"] for line in (beir_folder / "queries.jsonl").read_text().splitlines()][:16]


def ranked(model_folder, queries: list[str], passages: list[str]) -> np.ndarray:
    """Ranks by transformers alone, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)

    def embed(text: str) -> torch.Tensor:
        with torch.inference_mode():
            state = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=32)).last_hidden_state[0, 0]
        return state / state.norm()

    scores = torch.stack([embed(text) for text in queries]) @ torch.stack([embed(text) for text in passages]).T
    return scores.argsort(dim=1, descending=True, stable=True).numpy()


def similarities(model_folder, queries: list[str], passages: list[str]) -> np.ndarray:
    """fp64 [Q, C] by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)

    def embed(text: str) -> torch.Tensor:
        with torch.inference_mode():
            state = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=32)).last_hidden_state[0, 0]
        return (state / state.norm()).double()

    return (torch.stack([embed(text) for text in queries]) @ torch.stack([embed(text) for text in passages]).T).numpy()


def write_rows(path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.files=[{path}]"
