"""stage=mine: margins, a cross-encoder's scores, and the same bytes from any number of ranks."""

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from mining import mined, queries_of, ranked, run, similarities, texts_of, write_rows, written

WORDS = [first + middle + last for first in "bdfgkl" for middle in "aeiou" for last in ("n", "r", "st")]


def sentence(seed: int, longest: int) -> str:
    """1 to `longest` words drawn by `seed`."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


def test_negatives_lie_below_the_lowest_positive_by_the_margin_wherever_it_is_ranked(world, model_folder, tmp_path):
    texts = [f"{sentence(number, 8)} {WORDS[number]}" for number in range(60)]
    rows = [{"query": sentence(500 + n, 4), "pos": texts[2 * n : 2 * n + 2]} for n in range(30)]
    data = ["data=jsonl", write_rows(tmp_path / "rows.jsonl", rows), "mine.first=0", "mine.last=20", "mine.number=20"]
    more = ["mine.relative_margin=0.0001", "mine.sampling=top", "mine.write_scores=true"]
    figures = run(world, mined(model_folder, tmp_path / "out", *data, *more))
    scores = similarities(model_folder, [row["query"] for row in rows], texts)
    outside = dropped = kept = 0
    for number, row in enumerate(written(tmp_path / "out")):
        own = [2 * number, 2 * number + 1]
        window = np.argsort(-scores[number], kind="stable")[:20].tolist()
        limit = 0.9999 * scores[number, own].min() + 1e-6  # and rounding
        outside += not set(own) <= set(window)
        dropped += sum(scores[number, place] > limit for place in window if place not in own)
        expected = [place for place in window if place not in own and scores[number, place] <= limit]
        kept += len(expected)
        assert row["neg"] == [texts[place] for place in expected]  # best first
        np.testing.assert_allclose(row["pos_scores"], scores[number, own], atol=2e-6)
        np.testing.assert_allclose(row["neg_scores"], scores[number, expected], atol=2e-6)
    assert outside > 5  # positives that the search has not found
    assert dropped > 5
    assert kept > 5
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
    queries = queries_of(beir_folder)
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


SETTINGS = {
    "margins": ["mine.sampling=top", "mine.relative_margin=0.0001", "mine.write_scores=true"],
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
