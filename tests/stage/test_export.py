"""stage=export: what it leaves, in the hands of transformers, sentence-transformers and onnxruntime, and what it measures."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

LENGTHS = ["data.query_max_len=32", "data.passage_max_len=32", 'data.query_instruction="find: "']


def run(world, overrides: list[str]) -> dict[str, Any]:
    from ranks import run_stage

    from bgetrain.search import shards

    shards.BLOCK = 16  # so that each of two ranks has a part of 40 passages
    return run_stage(world, ["stage=export", "chunk_tokens=200", *overrides])


@pytest.fixture(scope="module", autouse=True)
def blocks():
    from bgetrain.search import shards

    kept = shards.BLOCK
    yield
    shards.BLOCK = kept


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


@pytest.fixture(scope="module")
def source(model_folder, tmp_path_factory) -> Path:
    """A model with mean pooling, an instruction and a tokenizer with token types, as a run leaves it."""
    from transformers import AutoModel, AutoTokenizer

    from bgetrain.model import folder

    path = tmp_path_factory.mktemp("source") / "model"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    made = AutoModel.from_pretrained(model_folder)
    folder.save(path, made, made.state_dict(), tokenizer, pooling="mean", max_len=32, query_instruction="find: ")
    own = json.loads((path / "tokenizer_config.json").read_text())
    names = ["input_ids", "token_type_ids", "attention_mask"]
    (path / "tokenizer_config.json").write_text(json.dumps({**own, "model_input_names": names}))
    config = path / "sentence_bert_config.json"
    config.write_text(config.read_text() + "\n")  # a byte that nobody else would write
    (path.parent / "config.yaml").write_text("stage: {name: finetune}\n")
    return path


@pytest.fixture(scope="module")
def exported(world, source, beir_folder, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """One export with all there is: folder and figures."""
    out = tmp_path_factory.mktemp("exported") / "out"
    more = ["export.dtype=fp16", "export.onnx=true", "export.dimensions=[8,16]", "export.vectors=[int8,binary]"]
    hub = ["export.push_to=someone/tiny", "export.dry_run=true", "export.license=mit", "export.language=[en]"]
    return out, run(world, [f"model.path={source}", f"data.path={beir_folder}", f"output_dir={out}", *LENGTHS, *more, *hub])


def test_weights_are_those_of_the_source_in_the_dtype_asked_for(exported, source):
    from transformers import AutoModel

    found = AutoModel.from_pretrained(exported[0] / "model", dtype="auto").state_dict()
    assert {each.dtype for each in found.values() if each.is_floating_point()} == {torch.float16}
    expected = AutoModel.from_pretrained(source).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(each, expected[name].to(each.dtype)) for name, each in found.items())


def test_sentence_transformers_loads_it_and_finds_prompts_pooling_and_length_of_the_source(exported, source):
    from sentence_transformers import SentenceTransformer

    ours, theirs = (SentenceTransformer(str(each), device="cpu") for each in (exported[0] / "model", source))
    texts = ["ban bur best", "kin", "lun dor fast gir " * 12]
    assert next(ours.parameters()).dtype == torch.float16
    cosines = (ours.float().encode(texts, convert_to_tensor=True) * theirs.encode(texts, convert_to_tensor=True)).sum(1)
    assert (cosines > 0.9999).all()  # the weights are rounded
    assert (ours.prompts, ours.max_seq_length) == (theirs.prompts, theirs.max_seq_length)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
    ):
        assert (exported[0] / "model" / name).read_bytes() == (source / name).read_bytes(), name


def test_the_graph_gives_the_vectors_of_the_model_on_ragged_batches(exported):
    import onnxruntime
    from transformers import AutoModel, AutoTokenizer

    out, figures = exported
    session = onnxruntime.InferenceSession(str(out / "model/onnx/model.onnx"), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [each.shape for each in session.get_inputs()] == 3 * [["batch", "sequence"]]
    model = AutoModel.from_pretrained(out / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    for texts in (["kin"], ["ban bur best", "kin", "lun dor fast gir " * 9], ["lun dor " * 20] * 5 + ["gir"]):
        batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        theirs = session.run(None, {name: each.numpy() for name, each in batch.items()})[0]
        with torch.no_grad():
            expected = model(**batch).last_hidden_state
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            np.testing.assert_allclose(theirs[row, :length], expected[row, :length].numpy(), atol=2e-5)
    assert figures["onnx"]["lowest_cosine"] > 0.99999
    assert 0 < figures["onnx"]["largest_difference"] < 1e-5


@pytest.fixture(scope="module")
def tables(exported, source, beir_folder) -> dict[tuple[int, str], float]:
    """nDCG@10 worked out from the model's vectors in sentence-transformers and its quantisation, all passages ranked."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.quantization import quantize_embeddings

    from bgetrain.metric.ranking import score

    def rows(name: str) -> dict[str, str]:
        read = [json.loads(line) for line in (beir_folder / f"{name}.jsonl").read_text().splitlines()]
        return {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in read}

    qrels = {
        line.split("\t")[0]: {line.split("\t")[1]: 1} for line in (beir_folder / "qrels/test.tsv").read_text().splitlines()[1:]
    }
    model = SentenceTransformer(str(source), device="cpu").half().float()
    corpus, texts = rows("corpus"), {name: text for name, text in rows("queries").items() if name in qrels}
    passages, queries = model.encode_document(list(corpus.values())), model.encode_query(list(texts.values()))
    found = {}
    for width in (8, 16, 32):
        p, q = (each[:, :width] / np.linalg.norm(each[:, :width], axis=1, keepdims=True) for each in (passages, queries))
        ranges = np.stack([p.min(0), p.max(0)])
        small = (quantize_embeddings(p, "int8", ranges=ranges).astype(np.float64) + 128) * (ranges[1] - ranges[0]) / 255 + ranges[
            0
        ]
        distances = ((q[:, None] > 0) != (p[None] > 0)).sum(2)
        ways = {"fp32": q @ p.T, "int8": q @ small.T, "binary": -distances, "binary, rescored": q @ np.where(p > 0, 1, -1).T}
        for kind, scores in ways.items():
            run = {name: dict(zip(corpus, map(float, row), strict=True)) for name, row in zip(texts, scores, strict=True)}
            found[width, kind] = score(run, qrels)["ndcg@10"]
    return found


def test_the_losses_are_those_of_an_independent_search(exported, tables):
    table = exported[1]["vectors"]
    assert {(row["dimension"], row["kind"]): row["ndcg@10"] for row in table} == pytest.approx(tables, abs=1e-6)
    assert len(set(tables.values())) > 4  # a set that tells the kinds apart
    assert all(row["loss"] == pytest.approx(row["ndcg@10"] - tables[32, "fp32"], abs=1e-6) for row in table)
    sizes = {(row["dimension"], row["kind"]): row["bytes"] for row in table}
    assert (sizes[32, "fp32"], sizes[16, "int8"], sizes[8, "binary"], sizes[32, "binary, rescored"]) == (128, 16, 1, 4)


def test_the_vectors_of_the_corpus_are_left_with_what_makes_more_of_them(exported):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.quantization import quantize_embeddings

    folder = exported[0] / "vectors"
    ranges = np.load(folder / "int8-ranges.npy")
    names = (folder / "names.txt").read_text().splitlines()
    assert names == [f"p{number}" for number in range(40)]
    assert (np.load(folder / "int8.npy").shape, np.load(folder / "binary.npy").shape) == ((40, 32), (40, 4))
    vectors = SentenceTransformer(str(exported[0] / "model"), device="cpu").float().encode(["kin ban"])
    assert quantize_embeddings(vectors, "int8", ranges=ranges).shape == (1, 32)


def test_two_ranks_leave_what_one_leaves(spawn, exported, source, beir_folder, tmp_path):
    more = ["export.dtype=fp16", "export.dimensions=[8,16]", "export.vectors=[int8,binary]"]
    keys = [f"model.path={source}", f"data.path={beir_folder}", f"output_dir={tmp_path}/out", *LENGTHS, *more]
    first, second = spawn(2, run, keys)
    assert second == {}
    for ours, theirs in zip(first["vectors"], exported[1]["vectors"], strict=True):
        assert ours.pop("kind") == theirs["kind"]
        assert ours == pytest.approx({name: theirs[name] for name in ours})
    for name in ("vectors/int8.npy", "vectors/binary.npy", "vectors/names.txt", "model/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (exported[0] / name).read_bytes(), name


def test_the_card_has_the_table_the_graph_and_the_licence(exported):
    from huggingface_hub import ModelCard

    loaded = ModelCard.load(exported[0] / "model/README.md")
    assert (loaded.data.license, loaded.data.language, loaded.data.model_name) == ("mit", ["en"], "tiny")
    row = next(each for each in exported[1]["vectors"] if (each["dimension"], each["kind"]) == (16, "int8"))
    assert f"| 16 | int8 | 16 | {row['ndcg@10']:.4f} | {row['loss']:+.4f} |" in loaded.text
    assert "`onnx/model.onnx` takes `input_ids`, `attention_mask`, `token_type_ids`" in loaded.text
    assert 'SentenceTransformer("someone/tiny")' in loaded.text


# --- short exports, without data -----------------------------------------------------------------------------------------


def test_without_a_data_set_and_truncated(world, source, tmp_path, capsys):
    from sentence_transformers import SentenceTransformer

    figures = run(world, [f"model.path={source}", f"output_dir={tmp_path}/out", "export.truncate_dim=8", "export.dtype=bf16"])
    assert "vectors" not in figures
    model = SentenceTransformer(str(tmp_path / "out/model"), device="cpu")
    assert model.encode(["kin"]).shape == (1, 8)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert "8, the first of 32" in (tmp_path / "out/model/README.md").read_text()


def test_a_plain_checkpoint_gets_what_sentence_transformers_needs(world, model_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    run(
        world,
        [f"model.path={model_folder}", f"output_dir={tmp_path}/out", "model.pooling=mean", 'data.query_instruction="ask: "'],
    )
    model = SentenceTransformer(str(tmp_path / "out/model"), device="cpu")
    assert (model.prompts["query"], model.max_seq_length) == ("ask: ", 64)
    assert json.loads((tmp_path / "out/model/1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"] is True


def test_a_card_that_somebody_wrote_is_kept(world, source, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    (tmp_path / "model/README.md").write_text("---\nlicense: mit\n---\nmine\n")
    run(world, [f"model.path={tmp_path}/model", f"output_dir={tmp_path}/out"])
    assert (tmp_path / "out/model/README.md").read_text() == "---\nlicense: mit\n---\nmine\n"


def test_the_home_folder_can_be_written_as_a_tilde(world, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(source, tmp_path / "mine")
    (tmp_path / "mine/README.md").write_text("mine\n")
    run(world, ['model.path="~/mine"', f"output_dir={tmp_path}/out"])
    for name in ("sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json", "README.md"):
        assert (tmp_path / "out/model" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes(), name


def test_a_model_that_was_downloaded_is_exported_without_the_hub(world, source, tmp_path, monkeypatch):
    from huggingface_hub import constants

    place = tmp_path / "models--some--model"
    snapshot = place / "snapshots" / ("0" * 40)
    shutil.copytree(source, snapshot)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    run(world, ["model.path=some/model", f"output_dir={tmp_path}/out"])
    assert not (tmp_path / "out/model/spiece.model").exists()
    assert (tmp_path / "out/model/sentence_bert_config.json").read_bytes() == (source / "sentence_bert_config.json").read_bytes()
    (snapshot / "1_Pooling/config.json").unlink()  # it may be on the hub: cls would be a guess
    words = r"model\.pooling=auto: 1_Pooling/config\.json of some/model is not on this machine and .*: set model\.pooling$"
    with pytest.raises(ValueError, match=words):
        run(world, ["model.path=some/model", f"output_dir={tmp_path}/guessed"])
    run(world, ["model.path=some/model", f"output_dir={tmp_path}/said", "model.pooling=mean"])
    missing = place / ".no_exist" / ("0" * 40) / "1_Pooling"  # where the hub has once answered that there is none
    missing.mkdir(parents=True)
    (missing / "config.json").touch()
    run(world, ["model.path=some/model", f"output_dir={tmp_path}/known"])


class Hub:
    """Stands for huggingface_hub.HfApi and keeps what it was asked."""

    def __init__(self, calls: list):
        self.calls = calls

    def create_repo(self, *arguments, **keys):
        self.calls.append(("create", arguments, keys))

    def upload_folder(self, **keys):
        self.calls.append(("upload", keys))
        return "https://hub/someone/tiny/commit/1"


def test_a_dry_run_lists_every_file_and_asks_nobody(world, exported, source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", None)  # calling it would fail
    monkeypatch.setattr("urllib.request.urlopen", None)
    keys = [f"model.path={source}", f"output_dir={tmp_path}/out", "export.push_to=someone/tiny", "export.dry_run=true"]
    figures = run(world, keys)
    model = tmp_path / "out/model"
    there = {path.relative_to(model).as_posix(): path.stat().st_size for path in model.rglob("*") if path.is_file()}
    assert figures["files"] == there
    shown = capsys.readouterr().out
    assert re.search(rf"dry run: {len(there)} files, .* would go to someone/tiny \(private", shown)
    assert all(f"{name} " in shown and f"{size:,}" in shown for name, size in there.items())
    assert "pushed" not in figures


def test_a_push_makes_the_repository_and_uploads_the_folder(world, source, tmp_path, monkeypatch):
    from bgetrain import hub

    calls: list = []
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(calls))
    monkeypatch.setattr(hub, "settle", lambda: True)
    keys = ["export.push_to=someone/tiny", "export.private=false"]
    figures = run(world, [f"model.path={source}", f"output_dir={tmp_path}/out", *keys])
    (_, names, kept), (_, upload) = calls
    assert (names, kept) == (("someone/tiny",), {"private": False, "exist_ok": True})
    assert (upload["repo_id"], upload["folder_path"]) == ("someone/tiny", tmp_path / "out/model")
    assert figures["pushed"] == "https://hub/someone/tiny/commit/1"


def test_what_the_hub_refuses_is_said_in_one_line(tmp_path, monkeypatch):
    from bgetrain import hub

    def refuse(*_, **__):
        raise OSError("no\ntoken")

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub([]))
    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(ValueError, match=r"^export\.push_to=someone/tiny: not uploaded \(no token\)"):
        hub.push(tmp_path, "someone/tiny", private=True)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["export.truncate_dim=33"], r"export\.truncate_dim has 33, but the model's vectors have 32 numbers"),
        (["export.dimensions=[8]"], r"measured on a retrieval set: give data\.path=FOLDER"),
        (["export.dry_run=true"], r"export\.push_to=ORGANISATION/NAME"),
        (["export.license=MIT"], r"export\.license=MIT is no name of the hub's"),
        (["export.language=[English]"], r"export\.language has 'English'"),
        (["export.push_to=someone/tiny"], r"the hub cannot be reached"),
        (["export.push_to=tiny", "export.dry_run=true"], r"give ORGANISATION/NAME"),
        (["export.push_to=a/b/c", "export.dry_run=true"], r"export\.push_to=a/b/c: "),
    ],
)
def test_a_mistake_is_said_in_one_line(world, source, tmp_path, keys, words):
    with pytest.raises(ValueError, match=words) as error:
        run(world, [f"model.path={source}", f"output_dir={tmp_path}/out", *keys])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/model").exists()


def test_a_pooling_that_is_not_served_is_refused(world, source, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    (tmp_path / "model/1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match=r"pooling 'pooling_mode_max_tokens' is not one of cls, mean, last"):
        run(world, [f"model.path={tmp_path}/model", f"output_dir={tmp_path}/out"])


def test_weights_that_fp16_cannot_hold_are_refused(source):
    from transformers import AutoModel

    from bgetrain.model.body import Body
    from bgetrain.model.exported import round_weights

    made = AutoModel.from_pretrained(source)
    with torch.no_grad():
        made.embeddings.word_embeddings.weight[3, 4] = 7e4
    body = Body(made, None, "cls", 64, {}, None)
    with pytest.raises(ValueError, match=r"export\.dtype=fp16: embeddings\.word_embeddings\.weight has weights beyond 65504"):
        round_weights(body, "fp16")
    round_weights(body, "bf16")


# --- the graph ----------------------------------------------------------------------------------------------------------


def graph(path: Path, backbone, tokenizer_folder):
    from transformers import AutoTokenizer

    from bgetrain.model import onnx

    return onnx.export(path, backbone, AutoTokenizer.from_pretrained(tokenizer_folder), pooling="mean", max_positions=64)


def test_a_graph_that_is_not_the_model_is_refused_and_taken_away(exported, monkeypatch, tmp_path):
    from transformers import AutoModel

    def another(module, arguments, path, **keys):
        shutil.copyfile(exported[0] / "model/onnx/model.onnx", path)

    monkeypatch.setattr(torch.onnx, "export", another)
    made = AutoModel.from_pretrained(exported[0] / "model", dtype=torch.float32).eval()
    assert graph(tmp_path / "a/model.onnx", made, exported[0] / "model").texts == 14
    with torch.no_grad():
        made.encoder.layer[1].output.dense.weight[0] += 0.5
    with pytest.raises(ValueError, match=r"are not the model's, lowest cosine 0\.\d+ of 14 texts where above 0\.99999 is needed"):
        graph(tmp_path / "b/model.onnx", made, exported[0] / "model")
    assert list((tmp_path / "b").iterdir()) == []


def test_an_architecture_that_torch_cannot_export_is_said_in_one_line(exported, monkeypatch, tmp_path):
    from transformers import AutoModel

    def fail(*_, **__):
        raise RuntimeError("cannot\ntrace")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ValueError, match=r"torch\.onnx cannot export 'bert' \(RuntimeError: cannot trace\)$"):
        graph(tmp_path / "model.onnx", AutoModel.from_pretrained(exported[0] / "model"), exported[0] / "model")


def test_without_the_packages_it_is_said_what_to_install(monkeypatch):
    import sys

    from bgetrain.model import onnx

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs the package onnxruntime: pip install 'bgetrain\[onnx\]'"):
        onnx.check_installed()
