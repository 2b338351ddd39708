"""examples.json against plain transformers, text by text, and that looking changes nothing of the training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sentence

LONGEST = 24
ROWS, DRAWN = 14, 10
EDGES = np.linspace(-1, 1, 51)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """14 rows with one negative each; the last two share their positive."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {"query": sentence(3 * n, 4), "pos": [sentence(3 * n + 1, 15)], "neg": [sentence(3 * n + 2, 15)]} for n in range(ROWS)
    ]
    lines[-1]["pos"] = lines[-2]["pos"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf8")
    return path


def trains(model: Path, rows: Path, output: Path, *more: str) -> list[str]:
    return [
        "stage=finetune", f"model.path={model}", "data=jsonl", f"data.files=[{rows}]", "group_size=2", "global_batch=4",
        "chunk_tokens=60", "precision=fp32", "model.dropout=0.1", "total_steps=3", "save_every=1", "log_every=1", "optim.lr=1e-3",
        f"data.query_max_len={LONGEST}", f"data.passage_max_len={LONGEST}", "data.query_instruction='find: '", "preflight=false",
        f"output_dir={output}", *more,
    ]  # fmt: skip


def looked(world, model: Path, rows: Path, folder: Path, outputs: Path) -> None:
    """Trains with and without a look under ZeRO-3, goes on with a run, and evaluates a retrieval set that is in many blocks."""
    from ranks import run_stage

    from bgetrain import distributed
    from bgetrain.search import shards

    zero3 = ["engine=zero3", "+engine.zero_optimization.stage3_param_persistence_threshold=0"]
    for name, count in (("look", DRAWN), ("blind", 0)):
        run_stage(world, trains(model, rows, outputs / name, *zero3, f"examples={count}"))
    if world.rank == 0:  # as if the last step had been interrupted
        shutil.copytree(outputs / "look", outputs / "on")
        shutil.rmtree(outputs / "on/checkpoints/step_3")
        (outputs / "on/checkpoints/latest").write_text("step_2")
        (outputs / "on/result.json").unlink(missing_ok=True)
        facts = json.loads((outputs / "on/examples.json").read_text("utf8"))
        facts["means"] = {"before": {"positive": 0.125}}
        del facts["similarity"]["series"]["after"]
        (outputs / "on/examples.json").write_text(json.dumps(facts), "utf8")
    distributed.barrier(world)
    run_stage(world, trains(model, rows, outputs / "on", *zero3, f"examples={DRAWN}"))
    shards.BLOCK = 8
    data = [
        "data=beir",
        f"data.path={folder}",
        "data.query_instruction=",
        f"data.query_max_len={LONGEST}",
        f"data.passage_max_len={LONGEST}",
    ]
    run_stage(world, ["stage=evaluate", f"model.path={model}", *data, "precision=fp32", f"output_dir={outputs}/evaluated"])


@pytest.fixture(scope="module", params=[1, 2])
def outputs(request, spawn, model_folder, rows, beir_folder, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("looked")
    spawn(request.param, looked, model_folder, rows, beir_folder, made)
    return made


def read(folder: Path) -> dict:
    return json.loads((folder / "examples.json").read_text("utf8"))


def vectors(model: Path, texts: list[str]) -> np.ndarray:
    """Unit [CLS] states, text by text."""
    from transformers import AutoModel, AutoTokenizer

    body, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    found = []
    for text in texts:
        with torch.no_grad():
            inputs = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
            state = body(**inputs).last_hidden_state[0, 0]
        found.append((state / state.norm()).numpy())
    return np.stack(found)


def close(counts: list[int], values: list[float], mean: float) -> None:
    """A value at an edge may fall into either bar: the counts agree up to values within 1e-5 of one."""
    assert mean == pytest.approx(np.mean(values), abs=1e-5)
    assert sum(counts) == len(values)
    loose = sum(np.abs(EDGES - value).min() < 1e-5 for value in values)
    assert np.abs(np.array(counts) - np.histogram(np.clip(values, -1, 1), EDGES)[0]).sum() <= 2 * loose


def test_similarities_are_those_of_the_model_before_the_first_step_and_after_the_last(outputs, model_folder, rows):
    facts, lines = read(outputs / "look"), [json.loads(line) for line in rows.read_text("utf8").splitlines()]
    assert facts["of"] == f"{DRAWN} training rows; negatives: passages of the other rows"
    assert facts["similarity"]["edges"] == pytest.approx(EDGES, abs=1e-6)
    shown = {each["query"] for each in facts["hardest_negatives"]}
    chosen = [line for line in lines if line["query"] in shown]
    assert len(chosen) == DRAWN
    passages = [line["pos"][0] for line in chosen] + [line["neg"][0] for line in chosen]
    for moment, model in (("before", model_folder), ("after", outputs / "look/model")):
        scores = vectors(model, [f"find: {line['query']}" for line in chosen]) @ vectors(model, passages).T
        kinds: dict[str, list[float]] = {"positive": [], "negative": [], "hard negative": []}
        for number, line in enumerate(chosen):
            kinds["positive"].append(scores[number, number])
            for at, text in enumerate(passages):
                if text not in line["pos"]:
                    kinds["hard negative" if text in line["neg"] else "negative"].append(scores[number, at])
        for kind, values in kinds.items():
            close(facts["similarity"]["series"][moment][kind], values, facts["means"][moment][kind])
    expected = {}
    for number, line in enumerate(chosen):
        best = max((at for at, text in enumerate(passages) if text not in line["pos"]), key=lambda at: scores[number, at])
        expected[line["query"]] = (scores[number, best], scores[number, number])
    margins = [each["negative_score"] - each["positive_score"] for each in facts["hardest_negatives"]]
    assert margins == sorted(margins, reverse=True)
    for each in facts["hardest_negatives"]:
        assert (each["negative_score"], each["positive_score"]) == pytest.approx(expected[each["query"]], abs=1e-5)


def test_looking_changes_no_bit_of_the_weights(outputs):
    weights = [(outputs / name / "model/model.safetensors").read_bytes() for name in ("look", "blind")]
    assert weights[0] == weights[1]
    assert not (outputs / "blind/examples.json").exists()


def test_a_run_that_goes_on_keeps_what_was_before(outputs):
    facts, whole = read(outputs / "on"), read(outputs / "look")
    assert facts["means"]["before"] == {"positive": 0.125}
    assert facts["similarity"] == whole["similarity"]
    assert facts["means"]["after"] == whole["means"]["after"]
    weights = [(outputs / name / "model/model.safetensors").read_bytes() for name in ("look", "on")]
    assert weights[0] == weights[1]


def test_an_evaluation_shows_similarities_worst_queries_and_hardest_negatives(outputs, model_folder, beir_folder):
    facts = read(outputs / "evaluated")
    corpus, queries = (
        [json.loads(line) for line in (beir_folder / f"{name}.jsonl").read_text("utf8").splitlines()]
        for name in ("corpus", "queries")
    )
    texts = [f"{each['title']} {each['text']}" for each in corpus]
    assert facts["of"] == f"test of {beir_folder}, 8 queries; negatives: 40 random passages"
    scores = vectors(model_folder, [each["text"] for each in queries[16:24]]) @ vectors(model_folder, texts).T
    series, means = facts["similarity"]["series"]["after"], facts["means"]["after"]
    close(series["positive"], [scores[n, 16 + n] for n in range(8)], means["positive"])
    close(series["negative"], [scores[n, at] for n in range(8) for at in range(40) if at != 16 + n], means["negative"])
    worst = []
    for number in range(8):
        order = np.argsort(-scores[number], kind="stable").tolist()
        rank = order.index(16 + number) + 1
        gain = 1 / np.log2(rank + 1) if rank <= 10 else 0.0
        worst.append(
            (
                gain,
                -rank,
                scores[number, 16 + number],
                queries[16 + number]["text"],
                texts[16 + number],
                [texts[at] for at in order[:5]],
            )
        )
    told = [(each["query"], each["positive"], each["rank"]) for each in facts["worst_queries"]]
    assert told == [(query, positive, -rank) for _, rank, _, query, positive, _ in sorted(worst)]
    for each, (gain, _, _, _, positive, first) in zip(facts["worst_queries"], sorted(worst), strict=True):
        assert each["ndcg@10"] == pytest.approx(gain, abs=1e-6)
        assert [found["text"] for found in each["found"]] == first
        assert [found["relevant"] for found in each["found"]] == [text == positive for text in first]
    number = [each["text"] for each in queries].index(facts["hardest_negatives"][0]["query"]) - 16
    others = [max(scores[n, at] for at in range(40) if at != 16 + n) - scores[n, 16 + n] for n in range(8)]
    assert number == int(np.argmax(others))
    first = facts["hardest_negatives"][0]
    assert first["negative_score"] - first["positive_score"] == pytest.approx(others[number], abs=1e-5)


def test_texts_are_cut():
    from bgetrain.stage import examples

    assert examples.cut("x" * 300) == "x" * 300
    assert examples.cut("x" * 301) == "x" * 296 + " ..."
