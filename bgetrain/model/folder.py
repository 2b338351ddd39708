"""The `model/` folder: loads in transformers' AutoModel and in SentenceTransformer alike."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

# sentence-transformers' folder layout, as its 5.x and 6.x read it
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
POOLING_KEYS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}


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
    pooling_config = {"word_embedding_dimension": width, **{name: how == pooling for how, name in POOLING_KEYS.items()}}
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


def with_ties(backbone: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under every name that the backbone has for them.

    XLM-RoBERTa's word embeddings are first met as the MLM head's: under that name alone, its encoder would load without any.
    """
    names: dict[int, list[str]] = {}
    for name, each in backbone.named_parameters(remove_duplicate=False):
        names.setdefault(id(each), []).append(name)
    return weights | {name: weights[known] for same in names.values() for known in same if known in weights for name in same}
