"""stage=mine: the window by hand, what is dropped, and what finetune reads back."""

import json
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch

from bgetrain.data import rows as row_files

WORDS = [first + middle + last for first in "bdfgkl" for middle in "aeiou" for last in ("n", "r", "st")]


def sentence(seed: int, longest: int) -> str:
    """1 to `longest` words drawn by `seed`."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))


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


# --- rules on scores --------------------------------------------------------------------------------------------------


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


def test_negatives_lie_below_the_lowest_positive_by_the_margin_wherever_it_is_ranked(world, model_folder, tmp_path):
    texts = [f"{sentence(number, 8)} {WORDS[number]}" for number in range(60)]
    rows = [{"query": sentence(500 + n, 4), "pos": texts[2 * n : 2 * n + 2]} for n in range(30)]
    data = ["data=jsonl", write_rows(tmp_path / "rows.jsonl", rows), "mine.first=0", "mine.last=20", "mine.number=20"]
    more = ["mine.relative_margin=0.001", "mine.sampling=top", "mine.write_scores=true"]
    figures = run(world, mined(model_folder, tmp_path / "out", *data, *more))
    scores = similarities(model_folder, [row["query"] for row in rows], texts)
    outside = dropped = 0
    for number, row in enumerate(written(tmp_path / "out")):
        own = [2 * number, 2 * number + 1]
        window = np.argsort(-scores[number], kind="stable")[:20].tolist()
        limit = 0.999 * scores[number, own].min()
        outside += not set(own) <= set(window)
        dropped += sum(scores[number, place] > limit for place in window if place not in own)
        expected = [place for place in window if place not in own and scores[number, place] <= limit]
        assert row["neg"] == [texts[place] for place in expected]  # best first
        np.testing.assert_allclose(row["pos_scores"], scores[number, own], atol=2e-6)
        np.testing.assert_allclose(row["neg_scores"], scores[number, expected], atol=2e-6)
    assert outside > 5  # positives that the search has not found
    assert dropped > 5
    assert figures["audit"]["candidates"] == 30 * 20
    assert figures["audit"]["dropped_ratio"]["relative_margin"] == pytest.approx(dropped / 600)


@pytest.fixture(scope="module")
def judge_folder(model_folder, tmp_path_factory):
    """A cross-encoder with one score and weights that make it differ from the model."""
    return save_judge(model_folder, tmp_path_factory.mktemp("judge"), labels=1)


def save_judge(model_folder, folder, labels: int):
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(5)
    model = BertForSequenceClassification(AutoConfig.from_pretrained(model_folder, num_labels=labels)).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with torch.no_grad():  # scores that spread around one half
        model.classifier.weight.mul_(20)
        model.classifier.bias.sub_(model(**tokenizer("ban dor", "kin lun", return_tensors="pt")).logits[0])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def judged(folder, query: str, passages: list[str]) -> np.ndarray:
    """The cross-encoder's scores by transformers alone, one pair at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = [model(**tokenizer(query, text, return_tensors="pt", truncation=True)).logits[0, 0] for text in passages]
    return torch.stack(logits).sigmoid().double().numpy()


def test_a_cross_encoder_scores_the_window_anew_and_the_margin_is_held_by_its_scores(
    world, model_folder, judge_folder, beir_folder, tmp_path
):
    data = ["data=beir", f"data.path={beir_folder}", "mine.number=20", "mine.sampling=top"]
    more = [f"mine.rescore={judge_folder}", "mine.rescore_batch=3", "mine.absolute_margin=0.02"]
    run(world, mined(model_folder, tmp_path / "out", *data, *more))
    texts = list(texts_of(beir_folder).values())
    queries = [json.loads(line)["text"] for line in (beir_folder / "queries.jsonl").read_text().splitlines()][:16]
    order = ranked(model_folder, queries, texts)
    reordered = dropped = 0
    for number, row in enumerate(written(tmp_path / "out")):
        window = [place for place in order[number, 2:12].tolist() if place != number]
        scores = judged(judge_folder, queries[number], [texts[place] for place in window])
        positive = judged(judge_folder, queries[number], [texts[number]])[0]
        best = [at for at in np.argsort(-scores, kind="stable").tolist() if scores[at] <= positive - 0.02]
        dropped += len(window) - len(best)
        reordered += best != sorted(best)
        assert row["neg"] == [texts[window[at]] for at in best]
        np.testing.assert_allclose(row["pos_scores"], [positive], atol=2e-6)
        np.testing.assert_allclose(row["neg_scores"], scores[best], atol=2e-6)
    assert reordered > 5
    assert dropped > 5


def test_what_is_no_cross_encoder_is_refused_in_one_line(world, model_folder, beir_folder, tmp_path, monkeypatch):
    data = ["data=beir", f"data.path={beir_folder}"]
    two = save_judge(model_folder, tmp_path / "two", labels=2)
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "empty: cannot be loaded as a CrossEncoder"),
        (model_folder, "is BertForPreTraining without a head that scores pairs"),
        (two, "gives 2 scores for a pair: it must give 1"),
    ):
        with pytest.raises(ValueError, match=message) as told:
            run(world, mined(model_folder, tmp_path / f"out-{path.name}", *data, f"mine.rescore={path}"))
        assert "\n" not in str(told.value)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        ValueError, match="needs sentence-transformers, which is not installed: pip install sentence-transformers"
    ):
        run(world, mined(model_folder, tmp_path / "out", *data, f"mine.rescore={two}"))


# --- rows -------------------------------------------------------------------------------------------------------------


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
    queries = [json.loads(line)["text"] for line in (beir_folder / "queries.jsonl").read_text().splitlines()][:16]
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


# --- the audit, and ranks ---------------------------------------------------------------------------------------------


def test_the_audit_counts_shows_and_gives_examples(world, model_folder, beir_folder, tmp_path, capsys):
    data = ["data=beir", f"data.path={beir_folder}", "mine.write_scores=true", "mine.number=8", "mine.max_score=0.996"]
    figures = run(world, mined(model_folder, tmp_path / "out", *data))
    rows, audit = written(tmp_path / "out"), figures["audit"]
    texts = list(texts_of(beir_folder).values())
    queries = [json.loads(line)["text"] for line in (beir_folder / "queries.jsonl").read_text().splitlines()][:16]
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


SETTINGS = {
    "margins": ["mine.sampling=top", "mine.relative_margin=0.001", "mine.write_scores=true"],
    "weighted": ["mine.sampling=weighted", "mine.near_duplicate=0.5", "mine.fill=random", "mine.first=0", "mine.last=5"],
    "judge": ["mine.sampling=top", "mine.absolute_margin=0.01", "mine.keep_negatives=true", "mine.rescore_batch=5"],
}


def mine_all(world, model_folder, judge_folder, files: str, folder: str) -> dict[str, Any]:
    found = {}
    for name, more in SETTINGS.items():
        judge = [f"mine.rescore={judge_folder}"] if name == "judge" else []
        output = f"{folder}/{name}"
        lengths = ["data.query_max_len=32", "data.passage_max_len=32", "mine.first=2", "mine.last=12", "mine.number=4"]
        model = [f"model.path={model_folder}", f"output_dir={output}", "data=jsonl", files, f"embeddings_cache={folder}/kept"]
        found[name] = run(world, [*model, *lengths, *judge, *more])
    return found


def test_any_number_of_ranks_writes_the_same_bytes(spawn, world, model_folder, judge_folder, tmp_path):
    texts = [sentence(number, 12) for number in range(300)]
    rows = [
        {"query": sentence(1000 + n, 6), "pos": texts[2 * n : 2 * n + 1 + n % 2], "neg": texts[2 * n + 5 : 2 * n + 5 + n % 3]}
        for n in range(140)
    ]
    files = write_rows(tmp_path / "rows.jsonl", rows)
    one = mine_all(world, model_folder, judge_folder, files, str(tmp_path / "1"))
    for size in (2, 4):
        many = spawn(size, mine_all, model_folder, judge_folder, files, str(tmp_path / f"{size}"))[0]
        for name in SETTINGS:
            for file in ("train.jsonl", "examples.md", "scores.png"):
                assert (tmp_path / f"{size}/{name}/{file}").read_bytes() == (tmp_path / f"1/{name}/{file}").read_bytes(), (
                    size,
                    name,
                )
            assert {**many[name], "seconds": 0} == {**one[name], "seconds": 0}
    assert all(len(written(tmp_path / f"1/{name}")) == 140 for name in SETTINGS)
