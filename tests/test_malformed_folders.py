"""Configs, recipes, models and retrieval sets that are not what they should be, and the one line that each is answered by.

Rows and files stand in tests/test_malformed.py; mistakes of the command line in tests/test_errors.py.
"""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_malformed import LIMITS, refusal

from bgetrain import cli

# --- configs -------------------------------------------------------------------------------------------------------------------

TYPED = [
    (["data=jsonl", "data.files=[${data.files}]"], "data.files"),
    (["seed=${seed}"], "seed"),
    (["optim.lr=${loss.temperature}", "loss.temperature=${optim.lr}"], "loss.temperature"),
    (["optim.lr={"], "cannot read 'optim.lr={'"),
    (["data.query_instruction='half"], "cannot read "),
    (["output_dir=a\0b"], "output_dir"),
    (["seed=1e400"], "seed must be a whole number, 0 or above, got inf"),
    (["seed=" + "9" * 5000], "seed"),
    (["seed=18446744073709551616"], "seed"),
    (["total_steps=1_0_0x"], "total_steps must be a whole number above 0 or null, got '1_0_0x'"),
    (["model.dropout=nan"], "model.dropout must be a number from 0 to 1 or null, got nan"),
    (["global_batch=true"], "global_batch must be a whole number above 0, got True"),
]


@pytest.mark.parametrize(("typed", "said"), TYPED, ids=[" ".join(case[0])[:40].replace("\0", "NUL") for case in TYPED])
def test_a_malformed_config_is_one_line(typed, said, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = refusal(capfd, lambda: cli.main(["stage=finetune", *typed]))
    assert said in told
    assert len(told) < 1000
    assert list(tmp_path.iterdir()) == []


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES = [
    ("tabs", "one:\n\t- stage=pairs\n", "{path}:2: not YAML: found character '\\t' that cannot start any token"),
    ("an object of Python", "one: !!python/object/apply:os.system [ls]\n", "{path}:1: not YAML: "),
    ("a tag of nobody", "one: !mine [stage=pairs]\n", "{path}:1: not YAML: "),
    ("anchors in anchors", BOMB, "{path}: step 'd' has more than 1000 overrides"),
    (
        "an anchor inside itself",
        "one: &a [stage=pairs, *a]\n",
        "{path}: step 'one' has lists within lists more than 20 deep, or an anchor inside itself",
    ),
    ("lists in lists", "one: " + "[" * 3000 + "]" * 3000 + "\n", "{path}: "),
    ("two documents", "one: [stage=pairs]\n---\ntwo: [stage=pairs]\n", "{path}:2: not YAML: "),
    ("control characters", "one: [stage=pairs\0]\n", "{path}: not YAML"),
    ("a merge of no mapping", "<<: 3\none: [stage=pairs]\n", "{path}:1: not YAML: "),
    ("an unhashable key", "? [a]\n: [stage=pairs]\n", "{path}:1: not YAML: "),
    ("a date", "2001-01-01: [stage=pairs, 2001-01-01]\n", "2001, 1, 1) is no override"),
    ("a step named as a path", "../../x: [stage=pairs]\n", "step '../../x' must be named by letters"),
    ("nothing", "", "a recipe maps step names to lists of overrides, got NoneType"),
]


@pytest.mark.parametrize(("text", "said"), [case[1:] for case in RECIPES], ids=[case[0] for case in RECIPES])
def test_a_malformed_recipe_is_one_line(text, said, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    told = refusal(capfd, lambda: cli.main([f"recipe={path}"]))
    assert said.format(path=path) in told
    assert len(told) < 1000


# --- folders -------------------------------------------------------------------------------------------------------------------


def edit(name: str, **keys: Any) -> Callable[[Path], Any]:
    """Sets keys of a JSON file of the model."""
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **keys}))


def text(name: str, given: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(given.encode() if isinstance(given, str) else given)


def without(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [path.unlink() for name in names for path in folder.glob(name)]


UNLOADABLE = "model.path={path}: cannot be loaded"
HEADER = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
MODELS = [
    ("no tokenizer", without("tokenizer*", "vocab*", "special*"), "model.tokenizer={path}: "),
    ("a tokenizer of garbage", text("tokenizer.json", "{"), "model.tokenizer={path}: cannot be loaded"),
    ("a tokenizer that is no object", text("tokenizer.json", "[]"), "model.tokenizer={path}: cannot be loaded"),
    ("a tokenizer of no model", text("tokenizer.json", "{}"), "model.tokenizer={path}: cannot be loaded"),
    ("a config that is no JSON", text("config.json", "{"), UNLOADABLE),
    ("a config that is no object", text("config.json", "[]"), UNLOADABLE),
    ("a config of no text", text("config.json", b"\xff\xfe"), UNLOADABLE),
    ("a config of no model type", text("config.json", "{}"), UNLOADABLE),
    ("a model type of nobody", edit("config.json", model_type="nobody"), UNLOADABLE),
    ("a hidden size of text", edit("config.json", hidden_size="32"), UNLOADABLE),
    ("a hidden size below 0", edit("config.json", hidden_size=-32), UNLOADABLE),
    ("another hidden size", edit("config.json", hidden_size=64), UNLOADABLE),
    ("heads that do not divide", edit("config.json", num_attention_heads=5), UNLOADABLE),
    ("safetensors of nothing", text("model.safetensors", b""), UNLOADABLE),
    ("safetensors with an absurd header", text("model.safetensors", struct.pack("<Q", 2**60)), UNLOADABLE),
    ("safetensors beyond the file", text("model.safetensors", struct.pack("<Q", len(HEADER)) + HEADER), UNLOADABLE),
    ("a pickle in place of weights", text("model.safetensors", b"\x80\x04cos\nsystem\n."), UNLOADABLE),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), [case[1:] for case in MODELS], ids=[case[0] for case in MODELS])
def test_a_malformed_model_is_one_line(spoil, said, capfd, tmp_path, model_folder):
    from bgetrain.model.body import pretrained

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    spoil(folder)
    keys: dict[str, Any] = {"tokenizer": None, "dropout": None, "pooling": "auto", "gradient_checkpointing": False, "lora": None}
    more: dict[str, Any] = {"lora_scale": 1.0, "lora_dropout": 0.0, "masked_lm": False, "seed": 0, "vocabulary": None}
    told = refusal(capfd, lambda: pretrained(str(folder), **keys, **more))
    assert said.format(path=folder) in told
    assert len(told) < 1000


SETS = [
    ("no qrels", lambda folder: shutil.rmtree(folder / "qrels"), "qrels/train.tsv: no such file; the splits in"),
    ("qrels of no split", without("qrels/train.tsv"), "qrels/train.tsv: no such file; the splits in"),
    ("qrels of spaces", text("qrels/train.tsv", "q0 p0 1\n"), "qrels/train.tsv:1: must be query-id, corpus-id and a whole"),
    ("qrels of NUL", text("qrels/train.tsv", b"\0\0\0\n"), "qrels/train.tsv:1: must be query-id"),
    ("qrels of bytes", text("qrels/train.tsv", b"\xff\tp0\t1\n"), "qrels/train.tsv:1: not UTF-8 text"),
    ("a relevance of 5,000 digits", text("qrels/train.tsv", "q0\tp0\t" + "9" * 5000), "qrels/train.tsv:1: must be"),
    ("a query that is missing", text("qrels/train.tsv", "q0\tp0\t1\nqx\tp1\t1\n"), "qrels/train.tsv:2: query 'qx' is not in"),
    ("no passage of the qrels", text("qrels/train.tsv", "q0\tno\t1\n"), "no query of it has a passage that the corpus holds"),
    ("a corpus of nothing", text("corpus.jsonl", ""), "corpus.jsonl: no "),
    ("a passage twice", text("corpus.jsonl", '{"_id": "p0", "text": "a"}\n' * 2), "corpus.jsonl:2: "),
    ("a passage of no id", text("corpus.jsonl", '{"text": "a"}\n'), "corpus.jsonl:1: "),
    ("a query of no text", text("queries.jsonl", '{"_id": "q0", "text": 3}\n'), "queries.jsonl:1: 'text' of a query must be"),
]


@pytest.mark.parametrize(("spoil", "said"), [case[1:] for case in SETS], ids=[case[0] for case in SETS])
def test_a_malformed_retrieval_set_is_one_line(spoil, said, capfd, tmp_path, beir_folder):
    from bgetrain.data.corpus import beir

    folder = tmp_path / "beir"
    shutil.copytree(beir_folder, folder)
    spoil(folder)

    def both() -> Any:
        source = beir(str(folder), **LIMITS)
        assert source.rows is not None
        return len(source.rows())

    assert said in refusal(capfd, both)
