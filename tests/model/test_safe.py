"""Model folders of strangers: nothing in them is run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from bgetrain import cli
from bgetrain.model import body
from bgetrain.search import rescore

LOAD = dict(tokenizer=None, dropout=None, pooling="auto", gradient_checkpointing=False, masked_lm=False, seed=1, vocabulary=None)
LOAD |= dict(lora=None, lora_scale=2.0, lora_dropout=0.0)


@pytest.fixture
def folder(model_folder, tmp_path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def add(path: Path, **keys) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def with_code(folder: Path, monkeypatch) -> Path:
    """Code in the folder that leaves a mark when it is run; returns where."""
    mark = folder.parent / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder.parent / "modules"))
    (folder / "own.py").write_text(
        f"open(r'{mark}', 'w')\nfrom transformers import BertConfig as C, BertModel as M, BertTokenizerFast as T\n"
        "class Config(C): pass\nclass Model(M): config_class = Config\nclass Words(T): pass\n"
    )
    return mark


@pytest.mark.parametrize("kind", ["bert", "unheard"])
def test_code_of_a_folder_is_not_run_unless_it_is_asked_for(kind, folder, monkeypatch):
    mark = with_code(folder, monkeypatch)
    add(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"}, model_type=kind)
    with pytest.raises(ValueError, match=r"^model\.path=.*: config\.json asks for code of its own \(auto_map\), which is not "
                       r"run: set model\.trust_remote_code=true if you trust it[^\n]*$"):  # fmt: skip
        body.pretrained(str(folder), **LOAD)
    assert not mark.exists()
    body.pretrained(str(folder), **LOAD, trust_remote_code=True)
    assert mark.exists()


def test_code_of_a_tokenizer_is_not_run(folder, monkeypatch):
    mark = with_code(folder, monkeypatch)
    add(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Words", "own.Words"]})
    with pytest.raises(ValueError, match=r"^model\.tokenizer=.*: tokenizer_config\.json asks for code of its own"):
        body.load_tokenizer(str(folder))
    assert not mark.exists()


def test_modules_of_sentence_transformers_are_not_imported(folder, monkeypatch):
    mark = with_code(folder, monkeypatch)
    monkeypatch.syspath_prepend(str(folder))
    for type_, words in (("own.Model", "has a module Model, which bgetrain does not run"), ("own.Transformer", None)):
        (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": type_}]))
        if words:
            with pytest.raises(ValueError, match=words):
                body.pretrained(str(folder), **LOAD)
        else:
            body.pretrained(str(folder), **LOAD)
    assert not mark.exists()


def test_pickled_weights_are_refused_with_the_command_that_converts_them(folder, tmp_path):
    expected = AutoModel.from_pretrained(folder).state_dict()
    whole = body.pretrained(str(folder), **(LOAD | {"masked_lm": True})).backbone.state_dict()
    torch.save(torch_weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"its weights are pickled \(pytorch_model\.bin\).*convert them once: python -c "
    ) as said:
        body.pretrained(str(folder), **LOAD)
    assert "\n" not in str(said.value)
    code, names = str(said.value).partition('python -c "')[2].split('" ')
    subprocess.run([sys.executable, "-c", code, *names.split()], check=True)
    made = body.pretrained(str(folder), **LOAD)
    assert all(torch.equal(each, expected[name]) for name, each in made.backbone.state_dict().items())
    again = body.pretrained(str(folder), **(LOAD | {"masked_lm": True})).backbone.state_dict()
    assert all(torch.equal(each, whole[name]) for name, each in again.items()), "heads are converted too"


def torch_weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_pickle_is_not_opened_at_all(folder):
    """Not even where safe weights lie beside it."""

    class Evil:
        def __reduce__(self):
            return (open, (str(folder.parent / "ran"), "w"))

    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    body.pretrained(str(folder), **LOAD)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="its weights are pickled"):
        body.pretrained(str(folder), **LOAD)
    with pytest.raises(ValueError, match=r"mine\.rescore="):
        rescore.cross_encoder(str(folder), device=torch.device("cpu"), dtype=torch.float32, batch=1)
    assert not (folder.parent / "ran").exists()


def test_the_command_line_says_it_in_one_line(folder, tmp_path, monkeypatch, capfd):
    mark = with_code(folder, monkeypatch)
    add(folder / "config.json", auto_map={"AutoModel": "own.Model"})
    (tmp_path / "train.jsonl").write_text('{"query": "a", "pos": ["b"], "neg": ["c"]}\n' * 8)
    import bgetrain.engine.deepspeed  # noqa: F401  prints of its own

    capfd.readouterr()
    status = cli.main(["stage=finetune", f"model.path={folder}", "data=jsonl", f"data.files=[{tmp_path}/train.jsonl]",
                       "global_batch=4", f"output_dir={tmp_path}/out"])  # fmt: skip
    said = capfd.readouterr().err
    assert status == 2
    assert said.startswith(f"bgetrain: model.path={folder}: config.json asks for code of its own")
    assert said.count("\n") == 1
    assert not mark.exists()


def test_weights_outside_of_the_folder_and_attention_from_a_hub_are_refused(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "../other/model.safetensors"}}))
    with pytest.raises(ValueError, match=r"names '\.\./other/model\.safetensors', which is outside of the folder"):
        body.pretrained(str(folder), **LOAD)
    index.unlink()
    add(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(ValueError, match=r"attention from a hub, 'somebody/kernel', which is code"):
        body.pretrained(str(folder), **LOAD)
