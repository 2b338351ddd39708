"""One tiny backbone of each architecture that masked auto-encoding serves, and what its tests put in and take out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from bgetrain.model.retromae import RetroMAE
from bgetrain.types import Predictions

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
LENGTHS = [11, 7, 3]
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


def retromae(kind: str = "bert", query: str | None = "position", bag_of_words: bool = False, **changes) -> RetroMAE:
    """The whole model, decoder away from its fresh state."""
    lm = tiny(kind, **changes)
    model = RetroMAE(lm, query=query, bag_of_words=bag_of_words)
    if model.decoder:
        perturb(model.decoder)
    return model


def inputs(lengths: list[int] = LENGTHS, seed: int = 0) -> dict[str, Tensor | None]:
    """Texts padded together with random masks under the rules: row i hides i, column 0 is open but to row 0."""
    generator = torch.Generator().manual_seed(seed)
    count, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    clean = torch.randint(5, 200, (count, longest), generator=generator).masked_fill(~mask, 1)
    visible = torch.rand(count, longest, longest, generator=generator) < 0.5
    visible[:, :, 0] = True
    visible[:, 0, 1:2] = True
    visible &= ~torch.eye(longest, dtype=torch.bool) & mask[:, None, :] & mask[:, :, None]
    decoder_at = mask.clone()
    decoder_at[:, 0] = False
    encoder_at = (torch.rand(count, longest, generator=generator) < 0.4) & decoder_at
    return dict(
        encoder_ids=clean.masked_fill(encoder_at, 4),
        mask=None if mask.all() else mask,
        encoder_at=encoder_at,
        clean_ids=clean,
        visible=visible,
        decoder_at=decoder_at,
    )


def plain(predictions: Predictions, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Token-mean cross-entropies on whole logits."""
    losses = [
        functional.cross_entropy(functional.linear(states, weight, bias), targets)
        for states, targets in (
            (predictions.encoder, predictions.encoder_targets),
            (predictions.decoder, predictions.decoder_targets),
        )
        if len(states)
    ]
    return sum(losses), dict(zip(("encoder", "decoder"), losses, strict=False))


def seen(model: RetroMAE, batch: dict[str, Tensor | None]) -> tuple[Predictions, Tensor, Tensor]:
    """Predictions, and logits of encoder [M, V] and decoder [K, V]."""
    kept = []

    def score(predictions: Predictions, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        logits = (functional.linear(each, weight, bias) for each in (predictions.encoder, predictions.decoder))
        kept.append((predictions, *logits))
        return predictions.encoder.sum(), {}

    model(score, **batch)
    return kept[0]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
