"""The model card: what the hub checks of it, what it tells of a run, and what it keeps to itself."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from bgetrain import card, output

METRICS = {"ndcg@10": 0.4321, "mrr@10": 0.4, "recall@10": 0.5, "recall@100": 0.9, "map": 0.3}


def run_folder(folder: Path, **changes) -> Path:
    """What a finished stage=finetune leaves, as far as a card reads it."""
    from safetensors.numpy import save_file

    numpy = pytest.importorskip("numpy")
    model = folder / "model"
    (model / "1_Pooling").mkdir(parents=True)
    save_file({"a": numpy.zeros((2, 3), "float32"), "b": numpy.zeros(4, "float32")}, model / "model.safetensors")
    texts = {
        "config.json": {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2},
        "sentence_bert_config.json": {"max_seq_length": 48},
        "config_sentence_transformers.json": {"prompts": {"query": "find: ", "document": ""}},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    }
    for name, content in texts.items():
        (model / name).write_text(json.dumps(content))
    cfg = {
        "output_dir": str(folder), "seed": 7, "resume": "auto", "stage": {"name": "finetune"}, "global_batch": 8, "group_size": 2,
        "model": {"path": "BAAI/some-base", "token": "hf_abcdefghijklmnopqrstuvwxyz"}, "total_steps": 4, "epochs": 1,
        "data": {"_target_": "bgetrain.data.corpus.beir", "path": f"{Path.home()}/secret/sets/b", "query_instruction": "find: "},
        "loss": {"_target_": "bgetrain.loss.info_nce.info_nce", "temperature": 0.02},
        "optim": {"_target_": "bgetrain.optim.adamw.adamw", "lr": 1e-5},
        "evaluate": {"every": 2, "split": "test"}, **changes,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    files = {f"{Path.home()}/secret/sets/b/corpus.jsonl": {"bytes": 3467, "sha256_of_ends": "ae653aeb77a917b90a18"}}
    (folder / "provenance.json").write_text(json.dumps({"packages": {"torch": "2.13.0"}, "data": files, "hardware": "4 x H200"}))
    steps = [{"step": n, "loss": 2.0 / n, "lr": 1e-5, "queries_per_second": 4.0, "memory_gb": 1.5} for n in (1, 2, 3, 4)]
    steps[1] |= METRICS
    steps[3] |= {**METRICS, "ndcg@10": 0.1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in steps) + '{"step": 5, "lo')
    output.finish(str(folder), "finetune", {"steps": 4, "rows": 1234, "training": {"best_step": 2.0}})
    return folder


@pytest.fixture
def finished(tmp_path) -> Path:
    return run_folder(tmp_path / "recipe/finetune")


def text_of(folder: Path) -> str:
    return (folder / "model/README.md").read_text("utf8")


def test_the_hub_can_read_the_head_and_gets_the_results_back(finished):
    card.write(finished)
    loaded = ModelCard.load(finished / "model/README.md")  # raises where the head or its model-index is no valid metadata
    data = loaded.data
    assert (data.library_name, data.pipeline_tag, data.base_model) == (
        "sentence-transformers",
        "sentence-similarity",
        "BAAI/some-base",
    )
    assert (data.license, data.license_name) == ("other", "not-stated")
    found = {each.metric_type: each.metric_value for each in data.eval_results or []}
    assert found == {"ndcg_at_10": 0.4321, "mrr_at_10": 0.4, "recall_at_10": 0.5, "recall_at_100": 0.9, "map": 0.3}
    assert {(each.dataset_split, each.task_type) for each in data.eval_results or []} == {("test", "information-retrieval")}
    assert yaml.safe_load(data.to_yaml()) == yaml.safe_load(re.match(r"---\n(.*?)\n---", text_of(finished), re.S)[1])


def test_it_tells_data_loss_settings_hardware_and_time(finished):
    card.write(finished)
    text = text_of(finished)
    for words in (
        "| rows | 1,234 |", "| .../b/corpus.jsonl | 3,467 | `ae653aeb77a917b9` |", "| loss | info_nce(temperature=0.02) |",
        "| optimiser | adamw(lr=1e-05) |", "| global_batch | 8 |", "| steps | 4 |", "| hardware | 4 x H200 |",
        "| time in training steps | 8 s |",  # 4 steps of 8 queries at 4 a second
        "| parameters | 10, fp32 |", "| this model, step 2 | test of beir .../sets/b | 0.4321 |", "mean, then normalised",
        'embed(["find: " + "what', "(curves-finetune.png)", "global_batch: 8",
    ):  # fmt: skip
        assert words in text, words
    assert (finished / "model/curves-finetune.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "model/curves-finetune.png").stat().st_size < 60_000


def test_no_secret_and_no_path_of_the_user_is_in_it(finished):
    card.write(finished)
    assert "hf_abc" not in text_of(finished)
    assert str(Path.home()) + "/" not in text_of(finished)
    assert "secret" not in text_of(finished)
    assert "token: '***'" in text_of(finished)


def test_evaluations_of_runs_beside_it_are_listed_and_those_of_other_models_are_not(finished):
    for name, model in (("evaluate-a", finished / "model"), ("evaluate-b", finished.parent / "other/model")):
        folder = finished.parent / name
        folder.mkdir()
        data = {"_target_": "bgetrain.data.corpus.beir", "path": name, "split": "dev", "query_instruction": ""}
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"path": str(model)}, "data": data}))
        output.finish(str(folder), "evaluate", {"metrics": METRICS, "bm25": {**METRICS, "ndcg@10": 0.25}})
    path = finished / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished_at": 2.0}))
    older = json.loads((finished.parent / "evaluate-a/result.json").read_text())  # of a model that was in this folder before
    shutil.copytree(finished.parent / "evaluate-a", finished.parent / "evaluate-old")
    (finished.parent / "evaluate-old/result.json").write_text(json.dumps({**older, "finished_at": 1.0}))
    card.write(finished)
    assert text_of(finished).count("| this model | beir") == 1
    assert "| this model | beir evaluate-a, dev, without the instruction | 0.4321 |" in text_of(finished)
    assert "| BM25 | beir evaluate-a, dev, without the instruction | 0.2500 |" in text_of(finished)
    assert "evaluate-b" not in text_of(finished)
    values = [each.metric_value for each in ModelCard.load(finished / "model/README.md").data.eval_results or []]
    assert len(values) == 10
    assert 0.25 not in values  # BM25 is not this model


def test_an_evaluation_of_several_sets_brings_the_card_up_to_date(finished):
    card.write(finished)
    folder = finished.parent / "evaluate"
    folder.mkdir()
    data = {"_target_": "bgetrain.data.corpus.beir", "path": ["a", "b"], "split": "test", "query_instruction": "find: "}
    cfg = {"stage": {"name": "evaluate"}, "model": {"path": str(finished / "model")}, "data": data}
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    sets = {name: {"metrics": {**METRICS, "ndcg@10": value}} for name, value in (("a", 0.8), ("b", 0.6))}
    output.finish(str(folder), "evaluate", {"metrics": {**METRICS, "ndcg@10": 0.7}, "sets": sets})
    card.write(folder)
    for words in ("| beir a, b, test | 0.7000 |", "| this model | a | 0.8000 |", "| this model | b | 0.6000 |"):
        assert words in text_of(finished), words
    ModelCard.load(finished / "model/README.md")


def test_the_steps_before_are_told_and_the_checkpoint_of_the_first_is_the_base_model(finished):
    last = run_folder(finished.parent / "last", model={"path": str(finished / "model")}, stage={"name": "pairs"})
    card.write(last)
    text = text_of(last)
    assert text.index("Training, step 1 of 2: finetune") < text.index("Training, step 2 of 2: pairs")
    assert ModelCard(text).data.base_model == "BAAI/some-base"


def test_a_card_is_written_again_until_somebody_edits_it(finished):
    card.write(finished)
    (finished / "provenance.json").write_text(json.dumps({"hardware": "8 x H200"}))
    card.write(finished)
    assert "8 x H200" in text_of(finished)
    edited = text_of(finished).replace("8 x H200", "my cluster")
    (finished / "model/README.md").write_text(edited, "utf8")
    card.write(finished)
    assert text_of(finished) == edited


def test_a_folder_with_little_in_it_gets_a_card_too(tmp_path):
    card.write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("stage: {name: finetune}\n")
    card.write(tmp_path)
    assert ModelCard(text_of(tmp_path)).data.eval_results is None


def test_the_example_for_transformers_gives_the_vectors_of_sentence_transformers_which_loads_the_folder(model_folder, tmp_path):
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    from bgetrain.model import folder

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("stage: {name: finetune}\n")
    made, tokenizer = AutoModel.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    for pooling in ("cls", "mean", "last"):
        options = {"pooling": pooling, "max_len": 8, "query_instruction": 'find "it": '}
        folder.save(run / "model", made, made.state_dict(), tokenizer, **options)
        card.write(run)
        blocks = re.findall(r"```python\n(.*?)```", text_of(run), re.S)
        example = next(each for each in blocks if "AutoModel" in each).replace("path/to/this/folder", str(run / "model"))
        names: dict = {}
        exec(example.replace("print(", "str("), names)
        theirs = SentenceTransformer(str(run / "model"), device="cpu")
        assert (run / "model/README.md").is_file()
        ours = torch.cat([names["queries"], names["passages"]])
        passage = "A transformer is a neural network built on attention."
        expected = torch.cat(
            [
                theirs.encode_query(["what is a transformer?"], convert_to_tensor=True),
                theirs.encode_document([passage], convert_to_tensor=True),
            ]
        )
        assert ((ours * expected).sum(1) > 0.99999).all(), pooling
