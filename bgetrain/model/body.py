"""The encoder and its tokenizer, from a checkpoint or from YAML."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bgetrain import hub
from bgetrain.model import lora as low_rank
from bgetrain.types import NonNegativeInt, Pooling, PositiveFloat, PositiveInt, Ratio

HEADS = ("pooler.", "cls.", "lm_head.", "head.", "decoder.", "bert.pooler.")  # not part of the encoder


class Body(NamedTuple):
    """An encoder ready to train.

    Attributes:
        backbone: a transformers model; the masked-LM form where one was asked for, else without any head.
        tokenizer: a fast tokenizer of transformers.
        pooling: cls | mean | last.
        max_positions: the most tokens a text may have.
        unused: weights of the checkpoint that training leaves alone (BERT's pooler); saved as they were.
        adapters: LoRA's, which then are all that is trained; None: the whole backbone is.
    """

    backbone: Any
    tokenizer: Any
    pooling: str
    max_positions: int
    unused: dict[str, Tensor]
    adapters: low_rank.Adapters | None


def pretrained(
    path: str,
    *,
    tokenizer: str | None,
    dropout: Ratio | None,
    pooling: Literal["auto", "cls", "mean", "last"],
    gradient_checkpointing: bool,
    lora: PositiveInt | None,
    lora_scale: PositiveFloat,
    lora_dropout: Ratio,
    masked_lm: bool,
    seed: NonNegativeInt,
    vocabulary: Callable[[int, int], Any],
) -> Body:
    """Loads a checkpoint; weights are read in fp32, code in the folder is never run.

    Args:
        path: folder (transformers or sentence-transformers) or hub id.
        tokenizer: folder or hub id of another tokenizer; None: the one in `path`.
        dropout: of hidden states and attention; None: the checkpoint's.
        pooling: auto reads `path/1_Pooling/config.json`, else takes cls.
        gradient_checkpointing: recompute activations in the backward pass.
        lora: rank of adapters on every linear layer, which are then all that is trained; None: everything is.
        lora_scale: factor of what the adapters add, peft's alpha / rank.
        lora_dropout: of the adapters' inputs.
        masked_lm: with the masked-LM head.
        seed: of weights that the checkpoint lacks, and of the adapters.
        vocabulary: not used; the checkpoint has one.

    Raises:
        ValueError: there is no model at `path`, it cannot be read or reached, it lacks weights of the encoder, or there
            is no peft for `lora`.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    quiet()
    path = checked_path(path, "model.path")
    config = loaded(lambda: AutoConfig.from_pretrained(path), "model.path", path)
    if dropout is not None:
        set_dropout(config, dropout)
    torch.manual_seed(seed)
    factory = AutoModelForMaskedLM if masked_lm else AutoModel
    arguments = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    backbone, report = loaded(lambda: factory.from_pretrained(path, **arguments), "model.path", path)
    check_missing(path, report["missing_keys"])
    how = pooling_of(path) if pooling == "auto" else pooling
    made = finished(backbone, load_tokenizer(tokenizer or path), how, gradient_checkpointing)
    if lora is None:
        return made
    adapters = low_rank.adapt(backbone, path=path, rank=lora, scale=lora_scale, dropout=lora_dropout, seed=seed)
    return made._replace(adapters=adapters)


def bert(
    *,
    tokenizer: str | None,
    vocab_size: PositiveInt,
    hidden_size: PositiveInt,
    num_layers: PositiveInt,
    num_heads: PositiveInt,
    intermediate_size: PositiveInt,
    max_len: PositiveInt,
    dropout: Ratio,
    pooling: Pooling,
    gradient_checkpointing: bool,
    masked_lm: bool,
    seed: NonNegativeInt,
    vocabulary: Callable[[int, int], Any],
) -> Body:
    """Builds a BERT (Devlin et al. 2019, arXiv:1810.04805) with random weights.

    Args:
        tokenizer: folder or hub id; None: one is trained by `vocabulary`.
        vocab_size: words of a vocabulary to be trained.
        hidden_size: D, a multiple of num_heads.
        num_layers: of the encoder.
        num_heads: of attention.
        intermediate_size: of the feed-forward layers.
        max_len: positions.
        dropout: of hidden states and attention.
        pooling: cls | mean | last.
        gradient_checkpointing: recompute activations in the backward pass.
        masked_lm: with the masked-LM head.
        seed: of the weights.
        vocabulary: (vocab_size, max_len) -> tokenizer trained on the data's texts.
    """
    from transformers import BertConfig, BertForMaskedLM, BertModel

    quiet()
    if hidden_size % num_heads:
        raise ValueError(f"model.hidden_size={hidden_size} must be a multiple of model.num_heads={num_heads}")
    words = load_tokenizer(tokenizer) if tokenizer else vocabulary(vocab_size, max_len)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_len,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(seed)
    return finished((BertForMaskedLM if masked_lm else BertModel)(config), words, pooling, gradient_checkpointing)


def finished(backbone: Any, tokenizer: Any, pooling: str, gradient_checkpointing: bool) -> Body:
    """Takes off BERT's pooler, which no embedding uses, and sets gradient checkpointing."""
    unused = {}
    if isinstance(getattr(backbone, "pooler", None), nn.Module):
        unused = {f"pooler.{name}": value.clone() for name, value in backbone.pooler.state_dict().items()}
        backbone.pooler = None
    if gradient_checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    config = backbone.config
    if tokenizer.pad_token_id is None:
        raise ValueError("model.tokenizer has no padding token: choose an encoder's tokenizer")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"model.tokenizer has {len(tokenizer)} words but the model {config.vocab_size}: they do not belong together"
        )
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return Body(backbone, tokenizer, pooling, positions - first_position(config), unused, None)


def first_position(config: Any) -> int:
    """Number of a text's first position; RoBERTa's start at padding_idx + 1."""
    return config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0


def quiet() -> None:
    """Keeps transformers from drawing bars and tables: what matters of them is checked here."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_missing(path: str, missing: Iterable[str]) -> None:
    """Refuses a checkpoint that lacks weights of the encoder; a pooler or a masked-LM head may start afresh.

    Raises:
        ValueError: names some of what is missing.
    """
    lacking = sorted(name for name in missing if not name.startswith(HEADS))
    if lacking:
        raise ValueError(f"model.path={path}: has no weights for {len(lacking)} parameters, such as {lacking[0]}")


def set_dropout(config: Any, dropout: float) -> None:
    """Sets every dropout probability that the config has, whatever the architecture calls it."""
    for name in config.to_dict():
        if name.endswith(("dropout", "dropout_prob")) and isinstance(getattr(config, name), int | float):
            setattr(config, name, dropout)


def checked_path(path: str, key: str) -> str:
    """The path with `~` expanded; refuses a local folder without a model before transformers searches the hub for it.

    Raises:
        ValueError: `path` looks like a local path and holds no config.json.
    """
    folder = Path(path).expanduser()
    looks_local = folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1
    if not looks_local:
        return path
    if not (folder / "config.json").is_file():
        what = "there is no such folder" if not folder.exists() else "this folder has no config.json"
        raise ValueError(f"{key}={path}: {what}, so it is no model: give a folder that save_pretrained wrote, or a hub id")
    return str(folder)


def loaded(load: Callable[[], Any], key: str, path: str) -> Any:
    """Calls `load` and turns its errors into one line.

    Raises:
        ValueError: the hub cannot be reached, or what is at `path` cannot be read.
    """
    from safetensors import SafetensorError

    online = Path(path).exists() or hub.settle()
    try:
        return load()
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        if Path(path).exists():
            raise ValueError(f"{key}={path}: cannot be loaded: {reason}") from error
        raise ValueError(
            f"{key}={path}: no local folder, and cannot be reached on the hub ({reason if online else hub.SILENT}); "
            f"point {key}=FOLDER at a local copy, or build a small model with model=tiny"
        ) from error


def load_tokenizer(path: str) -> Any:
    """Loads a fast tokenizer.

    Raises:
        ValueError: there is none at `path`.
    """
    from transformers import AutoTokenizer

    tokenizer = loaded(lambda: AutoTokenizer.from_pretrained(path, use_fast=True), "model.tokenizer", path)
    if not tokenizer.is_fast:
        raise ValueError(f"model.tokenizer={path}: has no fast tokenizer (tokenizer.json)")
    return tokenizer


def pooling_of(path: str) -> str:
    """What `1_Pooling/config.json` of a folder or hub id says, in either of sentence-transformers' forms, else cls.

    Raises:
        ValueError: a pooling that bgetrain does not have, or a file that cannot be reached.
    """
    check_modules(path)
    file = file_of(path, "1_Pooling/config.json")
    if not file:
        return "cls"
    config = json.loads(file.read_text("utf8"))
    names = {"cls": "cls", "mean": "mean", "lasttoken": "last", "last": "last"}
    mode = config.get("pooling_mode")
    if mode is None:
        flags = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken"}
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        mode = flags.get(chosen[0], chosen[0]) if len(chosen) == 1 else "+".join(chosen)
    if mode not in names:
        raise ValueError(f"{file}: pooling {mode!r} is not one of cls, mean, last: set model.pooling")
    return names[mode]


def check_modules(path: str) -> None:
    """Holds what sentence-transformers would run after the encoder against what bgetrain runs.

    Raises:
        ValueError: `modules.json` lists another module than Transformer, Pooling and Normalize.
    """
    file = file_of(path, "modules.json")
    listed = json.loads(file.read_text("utf8")) if file else []
    others = [each["type"].rpartition(".")[2] for each in listed]
    others = [name for name in others if name not in ("Transformer", "Pooling", "Normalize")]
    if others:
        raise ValueError(
            f"{file}: has a module {others[0]}, which bgetrain does not run: take a model of Transformer, Pooling and Normalize, "
            "or set model.pooling to use its encoder alone"
        )


def file_of(path: str, name: str) -> Path | None:
    """Where a file of a folder or hub id lies on this machine; None where it has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if Path(path).is_dir():
        return Path(path, name) if Path(path, name).is_file() else None
    try:
        return Path(hf_hub_download(path, name))
    except LocalEntryNotFoundError as error:
        raise ValueError(f"model.pooling=auto: {name} of {path} cannot be reached on the hub: set model.pooling") from error
    except EntryNotFoundError:
        return None
