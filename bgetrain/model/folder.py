"""The `model/` folder: loads in transformers, sentence-transformers and what is built on them alike."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

# sentence-transformers' folder layout, as its 5.x and 6.x read it
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
# flags, not the one word of sentence-transformers 6, which reads them as well: text-embeddings-inference knows flags alone, and
# before 1.3 refuses a file without one of the first four (router/src/lib.rs, PoolConfig)
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": None,
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_lasttoken": "last",
}


class Facts(NamedTuple):
    """What a folder says of the use of its model.

    Attributes:
        prompts: name -> what is put before a text of that kind.
        max_len: tokens at which texts are cut; None: it does not say.
        lower_case: whether texts become lower case before they are tokenised, whatever the tokenizer does.
        truncate_dim: the first numbers of a vector that are kept; None: all.
    """

    prompts: dict[str, str]
    max_len: int | None
    lower_case: bool
    truncate_dim: int | None


def facts(folder: Path) -> Facts:
    """Reads sentence-transformers' files, as its 5.x and 6.x write them; a folder without them says nothing.

    Raises:
        ValueError: one of them is damaged, or says what it cannot.
    """

    def read(name: str) -> dict[str, Any]:
        file = folder / name
        if not file.is_file():
            return {}
        try:
            found = json.loads(file.read_text("utf8"))
        except ValueError as error:
            raise ValueError(f"{file}: is damaged ({error})") from error
        if not isinstance(found, dict):
            raise ValueError(f"{file}: must be an object of names and values, got {type(found).__name__}")
        return found

    transformer = read("sentence_bert_config.json")
    whole = read("config_sentence_transformers.json")
    prompts, kept = whole.get("prompts") or {}, whole.get("truncate_dim")
    if not isinstance(prompts, dict) or not all(isinstance(each, str | None) for each in prompts.values()):
        raise ValueError(f"{folder / 'config_sentence_transformers.json'}: prompts must be texts by name, got {prompts!r}")
    if kept is not None and (type(kept) is not int or kept < 1):
        raise ValueError(f"{folder / 'config_sentence_transformers.json'}: truncate_dim must be above 0 or null, got {kept!r}")
    longest = transformer.get("max_seq_length")
    if longest is None and (folder / "modules.json").is_file():  # 6.x leaves it to the tokenizer
        longest = read("tokenizer_config.json").get("model_max_length")
    known = {name: prompt or "" for name, prompt in prompts.items()}
    max_len = int(longest) if isinstance(longest, int | float) else None
    return Facts(known, max_len, transformer.get("do_lower_case") is True, kept)


def save(
    folder: Path, backbone: Any, weights: dict[str, Tensor], tokenizer: Any, *, pooling: str, max_len: int, query_instruction: str
) -> None:
    """Writes weights in fp32, tokenizer and the files that sentence-transformers looks for; all or nothing.

    Args:
        folder: replaced where it exists.
        backbone: the transformers model, for its config and class.
        weights: the backbone's whole state, fp32; of parameters that are in two places one name is enough.
        tokenizer: saved beside.
        pooling: cls | mean | last.
        max_len: tokens at which sentence-transformers cuts.
        query_instruction: becomes the prompt `query`.
    """
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    backbone.save_pretrained(beside, state_dict=with_ties(backbone, weights))
    backbone.config.dtype = "float32"  # save_pretrained writes that of the module, which under bf16 is not that of the weights
    backbone.config.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    width = backbone.config.hidden_size
    clean(beside / "tokenizer.json")
    pooling_config = {"word_embedding_dimension": width, **{name: how == pooling for name, how in POOLING_KEYS.items()}}
    prompts = {"query": query_instruction, "document": ""}
    for name, content in {
        "modules.json": MODULES,
        "sentence_bert_config.json": {"max_seq_length": max_len, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        "1_Pooling/config.json": pooling_config,
        "2_Normalize/config.json": {},
    }.items():
        (beside / name).parent.mkdir(exist_ok=True)
        (beside / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf8")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def clean(file: Path) -> None:
    """Takes out where the last texts of training were cut and padded, which others would take for a property of the model."""
    if not file.is_file():
        return
    words = json.loads(file.read_text("utf8"))
    if words.get("truncation") is not None or words.get("padding") is not None:
        file.write_text(json.dumps({**words, "truncation": None, "padding": None}, indent=2, ensure_ascii=False), "utf8")


def with_ties(backbone: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under every name that the backbone has for them.

    XLM-RoBERTa's word embeddings are first met as the MLM head's: under that name alone, its encoder would load without any.
    """
    names: dict[int, list[str]] = {}
    for name, each in backbone.named_parameters(remove_duplicate=False):
        names.setdefault(id(each), []).append(name)
    return weights | {name: weights[known] for same in names.values() for known in same if known in weights for name in same}
