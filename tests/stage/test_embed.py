"""Embeddings of a stage are kept, found by model and texts, and searched as the config says."""

import json
import shutil
from typing import Any

import pytest


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Texts of each forward pass."""
    from bgetrain.search import encode

    counted: list[int] = []
    embed = encode.embed
    monkeypatch.setattr(encode, "embed", lambda used, text, *more: counted.append(len(text.lengths)) or embed(used, text, *more))
    return counted


def run(world, stage: str, *overrides: str) -> dict[str, Any]:
    from ranks import run_stage

    return run_stage(world, [f"stage={stage}", *overrides])


def small(model_folder, beir_folder, output, *more: str) -> list[str]:
    lengths = ["data.query_max_len=32", "data.passage_max_len=32"]
    data = ["data=beir", f"data.path={beir_folder}", "data.split=test"]
    return [f"model.path={model_folder}", *data, f"output_dir={output}", "chunk_tokens=100", *lengths, *more]


def test_a_second_run_finds_what_the_first_has_embedded(world, passes, model_folder, beir_folder, tmp_path):
    kept = f"embeddings_cache={tmp_path}/kept"
    first = run(world, "evaluate", *small(model_folder, beir_folder, tmp_path / "1", kept))
    assert passes == [40, 8]
    again = run(world, "evaluate", *small(model_folder, beir_folder, tmp_path / "2", kept, "chunk_tokens=50"))
    assert again["metrics"] == first["metrics"]
    assert passes == [40, 8]
    run(world, "mine", *small(model_folder, beir_folder, tmp_path / "3", kept))  # another stage
    assert passes == [40, 8]
    run(world, "evaluate", *small(model_folder, beir_folder, tmp_path / "4"))  # its own folder
    assert passes == [40, 8, 40, 8]
    assert (tmp_path / "4/embeddings").is_dir()
    assert not (tmp_path / "1/embeddings").exists()


@pytest.mark.parametrize(
    ("change", "embedded"),
    [
        ("data.query_instruction='kin '", [8]),
        ("data.query_max_len=16", [8]),
        ("data.passage_max_len=16", [40]),
        ("model.pooling=mean", [40, 8]),
        ("precision=bf16", [40, 8]),
        ("weights", [40, 8]),
        ("tokenizer", [40, 8]),
        ("config", [40, 8]),
        ("model.dropout=0.5", []),
    ],
)
def test_whatever_changes_an_embedding_is_embedded_anew(world, passes, model_folder, beir_folder, tmp_path, change, embedded):
    import torch
    from transformers import AutoModel

    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    kept = f"embeddings_cache={tmp_path}/kept"
    run(world, "evaluate", *small(copy, beir_folder, tmp_path / "1", kept))
    passes.clear()
    if change == "weights":
        model = AutoModel.from_pretrained(copy)
        with torch.no_grad():
            model.encoder.layer[1].output.dense.bias[3] += 1e-3
        model.save_pretrained(copy)
    if change == "tokenizer":
        inside = json.loads((copy / "tokenizer.json").read_text("utf8"))
        inside["normalizer"]["lowercase"] = False
        (copy / "tokenizer.json").write_text(json.dumps(inside), "utf8")
    if change == "config":
        config = json.loads((copy / "config.json").read_text("utf8"))
        (copy / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}), "utf8")
    more = [change] if "=" in change else []
    run(world, "evaluate", *small(copy, beir_folder, tmp_path / "2", kept, *more))
    assert passes == embedded


def test_every_search_gives_the_metrics_of_the_exact_one_and_says_what_it_missed(world, model_folder, beir_folder, tmp_path):
    kept = f"embeddings_cache={tmp_path}/kept"
    metrics = run(world, "evaluate", *small(model_folder, beir_folder, tmp_path / "exact", kept))["metrics"]
    blocks = ["search.query_block=3", "search.passage_block=7"]
    found = run(world, "evaluate", *small(model_folder, beir_folder, tmp_path / "blocks", kept, *blocks))
    assert found["metrics"] == pytest.approx(metrics, abs=1e-12)
    found = run(world, "evaluate", *small(model_folder, beir_folder, tmp_path / "flat", kept, "search=flat"))
    assert found["metrics"] == pytest.approx(metrics, abs=1e-12)
    assert "search_recall" not in found
    lists = ["search=ivf", "search.num_lists=4"]
    found = run(world, "evaluate", *small(model_folder, beir_folder, tmp_path / "all", kept, *lists, "search.num_probes=4"))
    assert found["metrics"] == pytest.approx(metrics, abs=1e-12)
    assert found["search_recall"] == 1.0
    found = run(world, "evaluate", *small(model_folder, beir_folder, tmp_path / "one", kept, *lists, "search.num_probes=1"))
    assert 0 < found["search_recall"] < 0.9
    assert found["metrics"]["recall@100"] < 1
