"""The encoder and its tokenizer, from a checkpoint or from YAML."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bgetrain import hub
from bgetrain.model import lora as low_rank
from bgetrain.model.masked_lm import HEADS, architecture, first_position
from bgetrain.model.pooling import pooling_of
from bgetrain.model.safe import check_code, check_safe
from bgetrain.types import NonNegativeInt, Pooling, PositiveFloat, PositiveInt, Ratio


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
    trust_remote_code: bool = False,
    lora: PositiveInt | None,
    lora_scale: PositiveFloat,
    lora_dropout: Ratio,
    masked_lm: bool,
    seed: NonNegativeInt,
    vocabulary: Callable[[int, int], Any],
) -> Body:
    """Loads a checkpoint; weights are read in fp32, and from safetensors alone: a pickle can run code.

    Args:
        path: folder (transformers or sentence-transformers) or hub id.
        tokenizer: folder or hub id of another tokenizer; None: the one in `path`.
        dropout: of hidden states and attention; None: the checkpoint's.
        pooling: auto reads `path/1_Pooling/config.json`, else takes cls.
        gradient_checkpointing: recompute activations in the backward pass.
        trust_remote_code: run the code that the folder brings along, if any; else such a folder is refused.
        lora: rank of adapters on every linear layer, which are then all that is trained; None: everything is.
        lora_scale: factor of what the adapters add, peft's alpha / rank.
        lora_dropout: of the adapters' inputs.
        masked_lm: with the masked-LM head.
        seed: of weights that the checkpoint lacks, and of the adapters.
        vocabulary: not used; the checkpoint has one.

    Raises:
        ValueError: there is no model at `path`, it cannot be read or reached, it brings code or pickled weights, it lacks
            weights of the encoder, it is of an architecture whose masked-LM form is not served, or there is no peft for `lora`.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    quiet()
    path = checked_path(path, "model.path")
    trust = {"trust_remote_code": trust_remote_code}
    check_safe(path, "model.path", **trust)
    config = loaded(lambda: AutoConfig.from_pretrained(path, **trust), "model.path", path)
    if masked_lm:
        architecture(config)  # before the weights: transformers has other words for it, or none until a part is looked for
    if dropout is not None:
        set_dropout(config, dropout)
    torch.manual_seed(seed)
    factory = AutoModelForMaskedLM if masked_lm else AutoModel
    safe = {**trust, "use_safetensors": True}
    arguments = {"config": config, "dtype": torch.float32, "output_loading_info": True, **safe}
    backbone, report = loaded(lambda: factory.from_pretrained(path, **arguments), "model.path", path)
    check_missing(path, report["missing_keys"])
    how = pooling_of(path) if pooling == "auto" else pooling
    made = finished(backbone, load_tokenizer(tokenizer or path, **trust), how, gradient_checkpointing)
    if masked_lm and any("pooler." in name for name in report["unexpected_keys"]):
        made = made._replace(unused=pooler_of(AutoModel.from_pretrained(path, **safe), f"{backbone.base_model_prefix}."))
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
    unused = pooler_of(backbone, "")
    if unused:
        backbone.pooler = None
    if gradient_checkpointing:
        checkpoint_activations(backbone)
    config = backbone.config
    if tokenizer.pad_token_id is None:
        raise ValueError("model.tokenizer has no padding token: choose an encoder's tokenizer")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"model.tokenizer has {len(tokenizer)} words but the model {config.vocab_size}: they do not belong together"
        )
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return Body(backbone, tokenizer, pooling, positions - first_position(config), unused, None)


def pooler_of(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """Weights of BERT's pooler, in fp32, under the names that they have in the whole model; none where there is no pooler."""
    pooler = getattr(encoder, "pooler", None)
    state = pooler.state_dict() if isinstance(pooler, nn.Module) else {}
    return {f"{prefix}pooler.{name}": each.float().clone() for name, each in state.items()}


def checkpoint_activations(backbone: Any) -> None:
    """Has each layer recompute its activations in the backward pass.

    Raises:
        ValueError: transformers has no way to do so for this architecture.
    """
    if not backbone.supports_gradient_checkpointing:
        kind = backbone.config.model_type
        raise ValueError(
            f"model.gradient_checkpointing=true: transformers cannot recompute the layers of {kind!r}: set it to false"
        )
    # transformers renamed it in 5.x and warns of the old name; reentrant checkpointing breaks under DDP
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    enable({"use_reentrant": False})


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
    online = Path(path).exists() or hub.settle()
    try:
        return load()
    except MemoryError:
        raise
    except Exception as error:  # of a damaged file transformers and tokenizers raise whatever they stumble over
        reason = " ".join(str(error).split())[:160]
        if Path(path).exists():
            raise ValueError(f"{key}={path}: cannot be loaded: {reason}") from error
        raise ValueError(
            f"{key}={path}: no local folder, and cannot be reached on the hub ({reason if online else hub.SILENT}); "
            f"point {key}=FOLDER at a local copy, or build a small model with model=tiny"
        ) from error


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> Any:
    """Loads a fast tokenizer.

    Raises:
        ValueError: there is none at `path`, or it needs code that the folder brings along and is not trusted.
    """
    from transformers import AutoTokenizer

    if Path(path).is_dir() and not trust_remote_code:
        check_code(Path(path), "model.tokenizer", "tokenizer_config.json")
    arguments = {"use_fast": True, "trust_remote_code": trust_remote_code}
    tokenizer = loaded(lambda: AutoTokenizer.from_pretrained(path, **arguments), "model.tokenizer", path)
    if not tokenizer.is_fast:
        raise ValueError(f"model.tokenizer={path}: has no fast tokenizer (tokenizer.json)")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without one
        raise ValueError(f"model.tokenizer={path}: has no words: tokenizer.json or the vocabulary is missing there")
    return tokenizer
