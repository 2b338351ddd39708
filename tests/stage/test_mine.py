"""stage=mine: the window by hand, what is dropped, what finetune reads back, and the audit."""

import json
from typing import Any

import numpy as np
import pytest
from mining import mined, queries_of, ranked, run, similarities, texts_of, write_rows, written

from bgetrain.data import rows as row_files

WORDS = [first + middle + last for first in "bdfgkl" for middle in "aeiou" for last in ("n", "r", "st")]


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


def test_negatives_come_from_the_window_of_the_model_s_ranks_without_the_positive(world, model_folder, beir_folder, tmp_path):
    data = ["data=beir", f"data.path={beir_folder}", "data.query_instruction='kin '"]
    figures = run(world, mined(model_folder, tmp_path / "out", *data, "mine.number=100"))
    passages = texts_of(beir_folder)
    queries = queries_of(beir_folder)
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
        [str(tmp_path / "out/train.jsonl")], columns={}, labels=None, corpus=None, on_bad_row="stop",
        query_max_len=32, passage_max_len=32, query_instruction="",
        missing_negatives="refuse", split="train",
    )  # fmt: skip
    rows = opened.rows()
    read = rows.take(range(len(rows)))
    assert [(row.query, row.positives, row.negatives) for row in read] == [
        (row["query"], row["pos"], row["neg"]) for row in written(tmp_path / "out")
    ]
    assert {len(row.negatives) for row in read} == {4}
    assert figures["rows_short_of_negatives"] == 0


def test_another_seed_draws_others(world, model_folder, beir_folder, tmp_path):
    data = ["data=beir", f"data.path={beir_folder}"]
    run(world, mined(model_folder, tmp_path / "one", *data))
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


def test_positives_of_another_row_with_the_same_query_are_no_negatives(world, model_folder, tmp_path):
    texts = [f"{WORDS[number]} {WORDS[number + 30]}" for number in range(8)]
    rows = [{"query": "ban", "pos": texts[:1]}, {"query": "kin", "pos": texts[2:3]}, {"query": " ban", "pos": texts[1:2]}]
    rows += [{"query": "lun", "pos": texts[3:]}]
    data = ["data=jsonl", write_rows(tmp_path / "rows.jsonl", rows), "mine.first=0", "mine.number=20"]
    run(world, mined(model_folder, tmp_path / "out", *data))
    found = written(tmp_path / "out")
    assert [set(row["neg"]) for row in found] == [set(texts[2:]), {*texts[:2], *texts[3:]}, set(texts[2:]), set(texts[:3])]
    assert [row["pos"] for row in found] == [row["pos"] for row in rows]


def test_a_row_s_own_negatives_are_kept_before_the_mined_or_left_out_and_counted(world, model_folder, tmp_path, capsys):
    texts = [f"{WORDS[number]} {WORDS[number + 30]}" for number in range(12)]
    rows = [
        {"query": "ban", "pos": texts[:1], "neg": [texts[5], texts[0], texts[6], texts[5]]},
        {"query": "kin", "pos": texts[1:]},
    ]
    data = ["data=jsonl", write_rows(tmp_path / "rows.jsonl", rows), "mine.first=0", "mine.number=3", "mine.write_scores=true"]
    kept = run(world, mined(model_folder, tmp_path / "kept", *data, "mine.keep_negatives=true"))
    first = written(tmp_path / "kept")[0]
    assert first["neg"][:2] == [texts[5], texts[6]]  # each once, and not the positive
    assert len(set(first["neg"])) == len(first["neg_scores"]) == 5
    scores = similarities(model_folder, ["ban"], first["neg"])[0]
    np.testing.assert_allclose(first["neg_scores"], scores, atol=2e-6)
    assert (kept["audit"]["own_negatives_kept"], kept["audit"]["own_negatives_left_out"]) == (2, 0)
    left = run(world, mined(model_folder, tmp_path / "left", *data))
    assert [len(row["neg"]) for row in written(tmp_path / "left")] == [3, 1]
    assert (left["audit"]["own_negatives_kept"], left["audit"]["own_negatives_left_out"]) == (0, 2)
    assert "left out 2 negatives that the rows had: mine.keep_negatives=true" in capsys.readouterr().err


def test_a_short_row_is_filled_from_beyond_the_ranking_under_the_same_rules(world, model_folder, beir_folder, tmp_path):
    data = ["data=beir", f"data.path={beir_folder}", "mine.first=2", "mine.last=4", "mine.number=6", "mine.relative_margin=0.0"]
    short = run(world, mined(model_folder, tmp_path / "short", *data))
    filled = run(world, mined(model_folder, tmp_path / "filled", *data, "mine.fill=random"))
    texts = list(texts_of(beir_folder).values())
    queries = queries_of(beir_folder)
    scores = similarities(model_folder, queries, texts)
    more = 0
    for number, (before, after) in enumerate(zip(written(tmp_path / "short"), written(tmp_path / "filled"), strict=True)):
        assert after["neg"][: len(before["neg"])] == before["neg"]
        places = [texts.index(text) for text in after["neg"][len(before["neg"]) :]]
        ranks = np.argsort(np.argsort(-scores[number], kind="stable"), kind="stable")
        assert all(ranks[place] >= 4 and scores[number, place] <= scores[number, number] for place in places)
        assert len(set(after["neg"])) == len(after["neg"]) <= 6
        more += len(places)
    assert short["audit"]["filled"] == 0
    assert filled["audit"]["filled"] == more > 16
    assert short["rows_short_of_negatives"] == 16 > filled["rows_short_of_negatives"]


def test_the_audit_counts_shows_and_gives_examples(world, model_folder, beir_folder, tmp_path, capsys):
    data = ["data=beir", f"data.path={beir_folder}", "mine.write_scores=true", "mine.number=8", "mine.max_score=0.996"]
    figures = run(world, mined(model_folder, tmp_path / "out", *data))
    rows, audit = written(tmp_path / "out"), figures["audit"]
    texts = list(texts_of(beir_folder).values())
    queries = queries_of(beir_folder)
    scores = similarities(model_folder, queries, texts)
    window = np.argsort(-scores, axis=1, kind="stable")[:, 2:12]
    positives = sum(number in window[number] for number in range(16))
    high = sum(scores[number, place] > 0.996 for number in range(16) for place in window[number] if place != number)
    assert audit["candidates"] == 160
    assert audit["dropped_ratio"] == pytest.approx({"max_score": high / 160, "positive": positives / 160})
    short = sum(len(row["neg"]) < 8 for row in rows)
    assert audit["short_ratio"] == short / 16
    assert 0 < short < 16
    negative = [score for row in rows for score in row["neg_scores"]]
    assert audit["scores"]["negatives"]["p50"] == pytest.approx(np.median(negative), abs=2e-6)
    assert audit["scores"]["positives"]["p95"] == pytest.approx(
        np.percentile([row["pos_scores"][0] for row in rows], 95), abs=2e-6
    )
    assert (tmp_path / "out/scores.png").read_bytes()[:4] == b"\x89PNG"
    examples = (tmp_path / "out/examples.md").read_text("utf8")
    assert examples.startswith("# 16 of 16 mined rows")
    for row in rows:
        assert f"## {row['query']}\n" in examples
        assert f"- positive, {row['pos_scores'][0]:.4f}: {row['pos'][0]}\n" in examples
    place = window[0].tolist().index(texts.index(rows[0]["neg"][0])) + 2
    assert f"- negative, {rows[0]['neg_scores'][0]:.4f}, rank {place}: {rows[0]['neg'][0]}\n" in examples
    assert f"dropped of the candidates: max_score {high / 1.6:.1f} %, positive {positives / 1.6:.1f} %" in capsys.readouterr().err
    assert not (tmp_path / "out/.parts").exists()
