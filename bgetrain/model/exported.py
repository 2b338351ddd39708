"""A model folder for use elsewhere: weights in another dtype, and all that is said beside them as the source has it."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bgetrain.model import folder
from bgetrain.model.body import Body
from bgetrain.model.pooling import file_of
from bgetrain.types import PositiveInt

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# what sentence-transformers and tokenizers read; where the source has one, it is taken as it is
SENTENCES = ("sentence_bert_config.json", "config_sentence_transformers.json")
POOLING = ("modules.json", "1_Pooling/config.json", "2_Normalize/config.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model"),
)


class Wanted(NamedTuple):
    """What `wanted` was given, checked."""

    dtype: Literal["fp32", "fp16", "bf16"]
    onnx: bool
    truncate_dim: int | None
    dimensions: list[int]
    vectors: list[Literal["int8", "binary"]]
    rescore: int
    push_to: str | None
    private: bool
    dry_run: bool
    license: str | None
    language: list[str]


def wanted(
    *,
    dtype: Literal["fp32", "fp16", "bf16"],
    onnx: bool,
    truncate_dim: PositiveInt | None,
    dimensions: list[PositiveInt],
    vectors: list[Literal["int8", "binary"]],
    rescore: PositiveInt,
    push_to: str | None,
    private: bool,
    dry_run: bool,
    license: str | None,
    language: list[str],
) -> Wanted:
    """Checks the keys of `export`, which `conf/stage/export.yaml` explains.

    Raises:
        ValueError: a name that the hub would refuse, or a dry run of nothing.
    """
    if dry_run and push_to is None:
        raise ValueError("export.dry_run=true lists what export.push_to=ORGANISATION/NAME would upload: give that as well")
    for each in [license] if license is not None else []:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", each):
            raise ValueError(f"export.license={each} is no name of the hub's: they are such as mit, apache-2.0, cc-by-nc-4.0")
    for each in language:
        if not re.fullmatch(r"[a-z]{2,3}|multilingual", each):
            raise ValueError(f"export.language has {each!r}: give codes such as en or zh, or multilingual")
    kept = sorted(set(dimensions))
    return Wanted(dtype, onnx, truncate_dim, kept, vectors, rescore, push_to, private, dry_run, license, language)


def check_widths(asked: Wanted, width: int) -> None:
    """Holds the dimensions that are asked for against D.

    Raises:
        ValueError: one is larger.
    """
    named = {"export.dimensions": asked.dimensions, "export.truncate_dim": [asked.truncate_dim] if asked.truncate_dim else []}
    for key, values in named.items():
        for value in values:
            if value > width:
                raise ValueError(f"{key} has {value}, but the model's vectors have {width} numbers: give {width} at the most")


def round_weights(made: Body, dtype: str) -> None:
    """Rounds an encoder's weights, in place, to what `dtype` can hold; they stay fp32 in memory.

    Raises:
        ValueError: one is too large for it.
    """
    if dtype == "fp32":
        return
    with torch.no_grad():
        for name, each in made.backbone.named_parameters():
            rounded = each.to(DTYPES[dtype]).float()
            if not bool(torch.isfinite(rounded).all()):
                raise ValueError(f"export.dtype={dtype}: {name} has weights beyond {torch.finfo(DTYPES[dtype]).max:g}: use bf16")
            each.copy_(rounded)


def save(target: Path, made: Body, asked: Wanted, *, source: str | None, keys: dict[str, Any], query_instruction: str) -> None:
    """Writes the folder anew.

    Args:
        target: replaced where it exists.
        made: weights as `round_weights` has left them.
        asked: dtype and truncate_dim.
        source: folder or hub id whose files are taken over; None: the model was built.
        keys: of `model` in the config; a pooling or tokenizer that they name goes before the source's.
        query_instruction: the prompt of queries where the source has no file that says it.

    Raises:
        ValueError: a file of the source is neither here nor on the hub.
    """
    weights: dict[str, Tensor] = {**made.backbone.state_dict(), **made.unused}
    folder.save(
        target,
        made.backbone,
        weights,
        made.tokenizer,
        pooling=made.pooling,
        max_len=made.max_positions,
        query_instruction=query_instruction,
    )
    if source is not None:
        pooling = POOLING if keys.get("pooling") == "auto" else ()
        take(source, target, (*SENTENCES, *pooling, *(TOKENIZER if keys.get("tokenizer") is None else ())))
    if asked.dtype != "fp32":
        convert(target, asked.dtype)
    if asked.truncate_dim:
        change(target / "config_sentence_transformers.json", truncate_dim=asked.truncate_dim)


def take(source: str, target: Path, names: Iterable[str]) -> None:
    """Copies the files of `source` that it has."""
    for name in names:
        found = file_of(source, name)
        if found is not None:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(found, target / name)


def convert(target: Path, dtype: str) -> None:
    """Writes the weights of a folder in another dtype, and says so in its config."""
    from safetensors.torch import load_file, save_file

    for path in sorted(target.glob("*.safetensors")):
        weights = load_file(path)
        rounded = {name: each.to(DTYPES[dtype]) if each.is_floating_point() else each for name, each in weights.items()}
        save_file(rounded, path, {"format": "pt"})
    change(target / "config.json", dtype=str(DTYPES[dtype]).removeprefix("torch."))


def change(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    found = json.loads(path.read_text("utf8"))
    path.write_text(json.dumps({**found, **values}, indent=2, ensure_ascii=False), "utf8")
