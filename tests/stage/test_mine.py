"""stage=mine: the window by hand, what is dropped, and what finetune reads back."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from bgetrain.data import rows as row_files


def run(world, overrides: list[str]) -> dict[str, Any]:
    from ranks import run_stage

    return run_stage(world, ["stage=mine", *overrides])


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


def mined(model_folder, output, *more: str) -> list[str]:
    lengths = ["data.query_max_len=32", "data.passage_max_len=32"]
    window = ["mine.first=2", "mine.last=12", "mine.number=4"]
    return [f"model.path={model_folder}", f"output_dir={output}", "chunk_tokens=100", *lengths, *window, *more]


def written(output) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "train.jsonl").read_text("utf8").splitlines()]


def texts_of(beir_folder) -> dict[str, str]:
    lines = [json.loads(line) for line in (beir_folder / "corpus.jsonl").read_text().splitlines()]
    return {line["_id"]: f"{line['title']} {line['text']}".strip() for line in lines}


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


def test_negatives_come_from_the_window_of_the_model_s_ranks_without_the_positive(world, model_folder, beir_folder, tmp_path):
    data = ["data=beir", f"data.path={beir_folder}", "data.query_instruction='kin '"]
    figures = run(world, mined(model_folder, tmp_path / "out", *data, "mine.number=100"))
    passages = texts_of(beir_folder)
    queries = [json.loads(line)["text"] for line in (beir_folder / "queries.jsonl").read_text().splitlines()][:16]
    order = ranked(model_folder, [f"kin {query}" for query in queries], list(passages.values()))
    found = written(tmp_path / "out")
    assert [row["query"] for row in found] == queries  # without the instruction, which finetune adds
    held = 0
    for number, row in enumerate(found):
        assert row["pos"] == [passages[f"p{number}"]]
        window = {list(passages.values())[place] for place in order[number, 2:12]}  # zero-based, half-open
        held += passages[f"p{number}"] in window
        assert set(row["neg"]) == window - {passages[f"p{number}"]}
        assert "prompt" not in row
    assert held > 0  # the window does hold positives that were dropped
    assert figures["rows"] == 16
    assert figures["rows_short_of_negatives"] == 16
    assert figures["negatives_per_row"] == sum(len(row["neg"]) for row in found) / 16


def test_the_jsonl_is_read_back_by_finetune_s_data(world, model_folder, beir_folder, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    figures = run(world, mined(model_folder, tmp_path / "out", "data=beir", f"data.path={beir_folder}"))
    opened = row_files.jsonl(
        [str(tmp_path / "out/train.jsonl")], columns={}, query_max_len=32, passage_max_len=32, query_instruction="",
        missing_negatives="refuse", split="train",
    )  # fmt: skip
    rows = opened.rows()
    read = rows.take(range(len(rows)))
    assert [(row.query, row.positives, row.negatives) for row in read] == [
        (row["query"], row["pos"], row["neg"]) for row in written(tmp_path / "out")
    ]
    assert {len(row.negatives) for row in read} == {4}
    assert figures["rows_short_of_negatives"] == 0


def test_two_ranks_write_what_one_writes_and_another_seed_draws_others(spawn, world, model_folder, beir_folder, tmp_path):
    data = ["data=beir", f"data.path={beir_folder}"]
    run(world, mined(model_folder, tmp_path / "one", *data))
    spawn(2, run, mined(model_folder, tmp_path / "two", *data))
    assert (tmp_path / "one/train.jsonl").read_bytes() == (tmp_path / "two/train.jsonl").read_bytes()
    run(world, mined(model_folder, tmp_path / "seed", *data, "seed=7"))
    assert written(tmp_path / "one") != written(tmp_path / "seed")


def test_prompts_of_rows_are_used_and_kept(world, model_folder, tmp_path):
    words = ["ban", "bur", "best", "kin", "lun", "dor", "fast", "gir", "fist", "gun"]
    rows: list[dict[str, Any]] = [{"query": word, "pos": [f"{word} {word}"]} for word in words]
    rows[1]["prompt"], rows[2]["prompt"] = "dor dor dor dor ", ""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [
        "data=jsonl",
        f"data.files=[{tmp_path}/rows.jsonl]",
        "data.query_instruction='lun lun '",
        "mine.first=0",
        "mine.last=3",
    ]
    run(world, mined(model_folder, tmp_path / "out", *data))
    found = written(tmp_path / "out")
    assert [row.get("prompt") for row in found] == [None, "dor dor dor dor ", "", *[None] * 7]
    passages = [row["pos"][0] for row in rows]
    texts = [f"{row.get('prompt', 'lun lun ')}{row['query']}" for row in rows]
    order = ranked(model_folder, texts, passages)
    for number, row in enumerate(found):
        assert set(row["neg"]) == {passages[place] for place in order[number, :3]} - {passages[number]}


def test_empty_passages_are_neither_positives_nor_negatives(world, model_folder, tmp_path):
    (tmp_path / "qrels").mkdir()
    corpus = [{"_id": f"d{n}", "text": text} for n, text in enumerate(["", "ban bur", "kin", "lun"])]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (tmp_path / "queries.jsonl").write_text('{"_id": "a", "text": "ban"}\n{"_id": "b", "text": "kin"}\n')
    (tmp_path / "qrels/train.tsv").write_text("a\td0\t1\na\td1\t1\nb\td0\t1\n")
    run(world, mined(model_folder, tmp_path / "out", "data=beir", f"data.path={tmp_path}", "mine.first=0"))
    found = written(tmp_path / "out")
    assert [(row["query"], row["pos"], sorted(row["neg"])) for row in found] == [("ban", ["ban bur"], ["kin", "lun"])]
