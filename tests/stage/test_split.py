"""stage=split: rows parted in those to train on and a retrieval set, against what was written by hand."""

import json
from pathlib import Path

import pytest
from ranks import run_stage

from bgetrain import distributed
from bgetrain.data.corpus import read_beir


@pytest.fixture(scope="module")
def world():
    return distributed.start(0, 1, 0, 1, 1.0)


def part(world, tmp_path: Path, rows: list[dict], *overrides: str, output: str = "out") -> tuple[dict, list[dict], dict]:
    """Runs the stage; returns its figures, the rows to train on, and each held-out query with its relevant passages."""
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = [f"data.files=[{tmp_path}/mine.jsonl]", f"output_dir={tmp_path}/{output}"]
    figures = run_stage(world, ["stage=split", "data=jsonl", *where, *overrides])
    train = [json.loads(line) for line in (tmp_path / output / "train.jsonl").read_text().splitlines()]
    held = read_beir(tmp_path / output, "test")
    places = held.passages.names(range(len(held.passages)))
    text_of = dict(zip(places, held.passages.take(range(len(places))), strict=True))
    asked = dict(zip(held.query_ids, held.queries, strict=True))
    return figures, train, {asked[name]: {text_of[each] for each in relevant} for name, relevant in held.qrels.items()}


def test_every_row_is_on_one_side_and_no_query_on_both(world, tmp_path):
    rows = [
        {"query": f"q{number // 2}", "pos": [f"p{number}"], "neg": [f"n{number % 7}"], "prompt": "find: "} for number in range(60)
    ]
    figures, train, held = part(world, tmp_path, rows, "split.test_ratio=0.2")
    assert (figures["train_rows"], figures["queries"], figures["passages"], figures["prompts"]) == (48, 6, 67, 12)
    assert train == [row for row in rows if row["query"] not in held]  # as they were, in their order
    assert held == {
        query: {row["pos"][0] for row in rows if row["query"] == query}
        for query in {row["query"] for row in rows}
        if query in held
    }
    corpus = [json.loads(line)["text"] for line in (tmp_path / "out/corpus.jsonl").read_text().splitlines()]
    assert sorted(corpus) == sorted({row["pos"][0] for row in rows} | {row["neg"][0] for row in rows})


def test_the_choice_is_the_seed_s_and_hardly_moves_when_rows_are_added(world, tmp_path):
    rows = [{"query": f"q{number}", "pos": [f"p{number}"], "pos_scores": [0.5]} for number in range(200)]
    first = part(world, tmp_path, rows, output="a")
    assert part(world, tmp_path, rows, output="b")[1:] == first[1:]
    assert len(first[2]) == 20
    assert set(part(world, tmp_path, rows, "seed=2", output="d")[2]) != set(first[2])
    more = part(world, tmp_path, [*rows, {"query": "one more", "pos": ["p"]}], output="e")
    assert len(set(more[2]) & set(first[2])) >= 19
    assert len(part(world, tmp_path, rows, "split.test_queries=3", output="f")[2]) == 3


def test_what_leaves_nothing_to_train_on_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="keep 1 of 1 different queries for evaluation and leave none to train on"):
        part(world, tmp_path, [{"query": "q", "pos": ["p"]}, {"query": "q", "pos": ["r"]}])
    assert not (tmp_path / "out/train.jsonl").exists()
