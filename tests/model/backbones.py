"""One tiny backbone of each architecture that masked auto-encoding serves."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

SIZES = dict(
    vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=24,
    initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
OWN: dict[str, dict[str, Any]] = {
    "bert": NO_DROPOUT,
    "ernie": NO_DROPOUT | dict(use_task_id=True),
    "electra": NO_DROPOUT | dict(embedding_size=32),
    "roberta": NO_DROPOUT | dict(pad_token_id=1, type_vocab_size=1),
    "xlm-roberta": NO_DROPOUT | dict(pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5),
    "camembert": NO_DROPOUT | dict(pad_token_id=3),
    "mpnet": NO_DROPOUT | dict(pad_token_id=1),
    "distilbert": dict(dropout=0.0, attention_dropout=0.0, hidden_dim=64),
    "modernbert": dict(cls_token_id=1, sep_token_id=2, local_attention=4, layer_types=["full_attention", "sliding_attention"]),
    "nomic_bert": NO_DROPOUT,
    "gte": NO_DROPOUT,
    "eurobert": dict(head_dim=24, num_key_value_heads=1),
}
ROTARY = ("modernbert", "nomic_bert", "gte", "eurobert")


def tiny(kind: str, **changes: Any) -> Any:
    """A masked LM of width 32 with 2 layers and 2 heads, 200 tokens, dropout 0 unless changed."""
    settings = SIZES | OWN[kind] | changes
    if kind == "distilbert":
        del settings["intermediate_size"]
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **settings))
    perturb(model)
    return model


def perturb(model: nn.Module) -> None:
    """Moves biases and norms away from 0 and 1, so that leaving one out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
