"""Evaluation while a stage trains, against plain transformers, numpy and hand-written figures on the model that it leaves."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import sentence

STEPS = 2
PROMPT = "find: "
LONGEST = 24


class Case(NamedTuple):
    """One arrangement; `block`: texts that a rank has at a time."""

    name: str
    stage: str = "finetune"
    zero: int = 1
    packed: bool = True
    lora: int | None = None
    block: int = 4096


CASES = [
    Case("zero1"),
    Case("zero3-padded-lora", zero=3, packed=False, lora=2, block=4),
    Case("retromae", "retromae", zero=3),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BEIR folder of 25 passages, the first ones long, and 13 queries; its ranks need different numbers of chunks."""
    made = tmp_path_factory.mktemp("validated")
    (made / "qrels").mkdir()
    passages = [{"_id": f"p{n}", "title": "", "text": sentence(n, 20) if n < 12 else sentence(n, 2)} for n in range(25)]
    queries = [{"_id": f"q{n}", "text": passages[2 * n]["text"].split()[0]} for n in range(13)]
    for name, rows in (("corpus", passages), ("queries", queries)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    lines = [f"q{n}\tp{2 * n}\t2\nq{n}\tp{(2 * n + 5) % 25}\t1\n" for n in range(13)]
    for split, part in (("train", lines[:8]), ("dev", lines[8:])):
        (made / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(part), "utf8")
    return made


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, Path]:
    """Two files of 20 and 16 rows with one positive and one negative each."""
    found = {}
    for name, count, first in (("one", 20, 0), ("two", 16, 500)):
        found[name] = tmp_path_factory.mktemp("rows") / f"{name}.jsonl"
        lines = [
            {
                "query": sentence(first + 3 * n, 5),
                "pos": [sentence(first + 3 * n + 1, 15)],
                "neg": [sentence(first + 3 * n + 2, 15)],
            }
            for n in range(count)
        ]
        found[name].write_text("".join(json.dumps(line) + "\n" for line in lines), "utf8")
    return found


def common(model: Path, output: Path, *more: str, dropout: float = 0, steps: int = STEPS, rate: str = "1e-3") -> list[str]:
    return [
        f"model.path={model}", f"model.dropout={dropout}", "global_batch=4", "chunk_tokens=60", "log_every=1",
        "preflight=false", "seed=3",
        "precision=fp32", f"total_steps={steps}", f"optim.lr={rate}", "evaluate.model=last", f"output_dir={output}", *more,
    ]  # fmt: skip


def lengths(*keys: str) -> list[str]:
    return [f"data.{key}_max_len={LONGEST}" for key in keys] + [f"data.query_instruction='{PROMPT}'"]


def zero(stage: int) -> list[str]:
    return [f"engine=zero{stage}", *(["+engine.zero_optimization.stage3_param_persistence_threshold=0"] if stage == 3 else [])]


def retrieved(world, cases: list[Case], model: Path, folder: Path, outputs: Path) -> list[tuple[list[dict], dict]]:
    """Of each case the lines of its log, and what stage=evaluate says of its `model/`."""
    from ranks import run_stage

    from bgetrain.search import shards
    from bgetrain.stage import embed

    plain_pack, found = embed.can_pack, []
    for case in cases:
        embed.can_pack = (lambda *_: False) if not case.packed else plain_pack
        shards.BLOCK = case.block
        lines: list[dict] = []
        data = ["data=beir", f"data.path={folder}", *lengths("query", "passage")]
        arguments = common(model, outputs / case.name, f"stage={case.stage}", *data, *zero(case.zero), "evaluate.every=1")
        arguments += ["evaluate.split=dev", "evaluate.held_out=0"]
        arguments += ["group_size=1"] if case.stage == "finetune" else []
        arguments += [f"model.lora={case.lora}"] if case.lora else []
        run_stage(world, arguments, lines)
        shards.BLOCK = 4096
        evaluate = ["stage=evaluate", f"model.path={outputs / case.name}/model", *data, "data.split=dev", "precision=fp32"]
        figures = run_stage(world, [*evaluate, f"output_dir={outputs / case.name}-evaluated"])
        found.append((lines, figures.get("metrics", {})))
    return found


def vectors(model: Path, texts: list[str]) -> torch.Tensor:
    """Unit [CLS] states, text by text."""
    from transformers import AutoModel, AutoTokenizer

    body, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    found = []
    for text in texts:
        with torch.no_grad():
            inputs = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
            state = body(input_ids=inputs["input_ids"]).last_hidden_state[0, 0]
        found.append(state / state.norm())
    return torch.stack(found)


def written_out(model: Path, folder: Path) -> dict[str, float]:
    """nDCG@10 and recall@10 of the dev split, by hand."""
    corpus, queries = (
        {row["_id"]: row["text"] for row in map(json.loads, (folder / f"{name}.jsonl").read_text("utf8").splitlines())}
        for name in ("corpus", "queries")
    )
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels/dev.tsv").read_text("utf8").splitlines()[1:]:
        query, passage, grade = line.split("\t")
        judged.setdefault(query, {})[passage] = int(grade)
    names = list(corpus)
    scores = vectors(model, [PROMPT + queries[query] for query in judged]) @ vectors(model, list(corpus.values())).T
    gains, recalls = [], []
    for row, grades in zip(scores.numpy(), judged.values(), strict=True):
        first = [names[place] for place in np.argsort(-row)[:10]]
        gained = sum(grades.get(name, 0) / math.log2(rank + 2) for rank, name in enumerate(first))
        best = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(grades.values(), reverse=True)))
        gains.append(gained / best)
        recalls.append(len({*first} & grades.keys()) / len(grades))
    return {"ndcg@10": float(np.mean(gains)), "recall@10": float(np.mean(recalls))}


@pytest.mark.parametrize("size", [1, 2])
def test_figures_of_a_step_are_those_of_its_saved_model_for_each_arrangement(size, spawn, model_folder, folder, tmp_path):
    for case, (lines, metrics) in zip(CASES, spawn(size, retrieved, CASES, model_folder, folder, tmp_path)[0], strict=True):
        assert len(lines) == STEPS
        assert {name: lines[-1][name] for name in metrics} == pytest.approx(metrics, abs=1e-6), case
        by_hand = written_out(tmp_path / case.name / "model", folder)
        assert {name: lines[-1][name] for name in by_hand} == pytest.approx(by_hand, abs=1e-6), case
        assert 0.05 < lines[-1]["ndcg@10"] < 0.95, case
        assert all(0 < line["evaluate_seconds"] < 60 for line in lines), case


def held(world, model: Path, rows: dict[str, Path], output: Path, size: int) -> dict[str, Any]:
    """One source, then a mixture, each with held-out rows; the lines of their logs, and where the rows trained on stand."""
    from ranks import run_stage

    from bgetrain.stage import contrastive

    plain, seen = contrastive.update_once, []

    def update(*arguments):
        supplied, batch = arguments[2], arguments[-1]
        for source, number in zip(batch.sources.tolist(), batch.rows.tolist(), strict=True):
            seen.append(supplied.feeds[source].rows.where(number))
        return plain(*arguments)

    single = ["data=jsonl", f"data.files=[{rows['one']}]", *lengths("query", "passage")]
    parts = ", ".join(
        f"{name}: {{data: jsonl, files: [{path}], query_max_len: {LONGEST}, passage_max_len: {LONGEST}, "
        f"query_instruction: '{PROMPT}', loss: {{temperature: {0.1 if name == 'one' else 0.3}}}}}"
        for name, path in rows.items()
    )
    both = ["data=mixture", f"data.sources={{{parts}}}"]
    found: dict[str, Any] = {}
    contrastive.update_once = update
    try:
        for name, data in (("single", single), ("both", both)):
            lines: list[dict] = []
            more = ["stage=finetune", "group_size=2", "loss.temperature=0.1", "loss.mask_equal=false"]
            more += ["evaluate.every=1", "evaluate.held_out=6", *zero(3 if name == "both" else 1)]
            steps = 7 if name == "single" else 1
            run_stage(world, common(model, output / name, *more, *data, rate="1e-2", dropout=0.2, steps=steps), lines)
            found[name] = lines
            if name == "single":
                found["seen"] = list(seen)
    finally:
        contrastive.update_once = plain
    return found


def pair_by_pair(model: Path, path: Path, temperature: float) -> tuple[float, float]:
    """InfoNCE of the rows that are held out, each query against all of their passages, and how often its own scores highest."""
    lines = [json.loads(line) for line in path.read_text("utf8").splitlines()]
    chosen = [lines[(2 * number + 1) * len(lines) // 12] for number in range(6)]
    queries = vectors(model, [PROMPT + row["query"] for row in chosen])
    passages = vectors(model, [text for row in chosen for text in (row["pos"][0], row["neg"][0])])
    losses, hits = [], []
    for number, query in enumerate(queries):
        scores = [float(query @ passage) / temperature for passage in passages]
        losses.append(math.log(sum(math.exp(score) for score in scores)) - scores[2 * number])
        hits.append(max(scores) == scores[2 * number])
    return float(np.mean(losses)), float(np.mean(hits))


def test_the_loss_of_held_out_rows_is_that_of_all_pairs_on_any_number_of_ranks_and_they_are_not_trained_on(
    spawn, model_folder, rows, tmp_path
):
    kept = {f"{rows['one']}:{(2 * number + 1) * 20 // 12 + 1}" for number in range(6)}
    for size in (1, 2):
        ranks = spawn(size, held, model_folder, rows, tmp_path / str(size), size)
        found, seen = ranks[0], {where for rank in ranks for where in rank["seen"]}
        assert len(seen) == 14  # 7 steps of 4 rows: two epochs of what is left of 20
        assert not seen & kept
        loss, accuracy = pair_by_pair(tmp_path / str(size) / "single/model", rows["one"], 0.1)
        last = found["single"][-1]
        assert last["held_out_loss"] == pytest.approx(loss, rel=1e-5)
        assert last["held_out_accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert last["held_out_loss"] != pytest.approx(found["single"][0]["held_out_loss"], rel=3e-5)
        last = found["both"][-1]
        model = tmp_path / str(size) / "both/model"
        parts = {name: pair_by_pair(model, rows[name], tau)[0] for name, tau in (("one", 0.1), ("two", 0.3))}
        assert {name: last[f"held_out_loss/{name}"] for name in parts} == pytest.approx(parts, rel=1e-5)
        assert last["held_out_loss"] == pytest.approx(sum(parts.values()) / 2, rel=1e-5)


def undisturbed(world, model: Path, folder: Path, output: Path) -> list[list[float]]:
    """Losses with dropout, by stage of ZeRO without evaluation and with it."""
    from ranks import run_stage

    found = []
    for stage in (1, 3):
        for more in ([], ["evaluate.every=1", "evaluate.split=dev"]):
            lines: list[dict] = []
            data = ["stage=finetune", "group_size=1", "data=beir", f"data.path={folder}", *lengths("query", "passage")]
            name = f"{stage}-{len(more)}"
            run_stage(world, common(model, output / name, *data, *zero(stage), *more, dropout=0.3, steps=4), lines)
            assert [("ndcg@10" in line) for line in lines] == [bool(more)] * 4
            found.append([line["loss"] for line in lines])
    return found


def test_losses_of_a_run_with_evaluation_are_those_of_one_without_bit_for_bit(spawn, model_folder, folder, tmp_path):
    one, evaluated, three, evaluated_three = spawn(2, undisturbed, model_folder, folder, tmp_path)[0]
    assert evaluated == one
    assert evaluated_three == three
    assert len(set(one)) == 4
