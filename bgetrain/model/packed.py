"""Texts laid end to end through a transformers encoder: no padding is computed, attention stays within each text.

Everything but attention works on single tokens, so that a row of T tokens is as good as N padded texts. Attention goes over
runs of texts of one length, which stand beside each other where texts come in order of length.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgetrain.model.dropout import dropout_mask, replace_dropout

# R = (texts, tokens of each) of the runs of a chunk; H heads, E = D / H

NAME = "bgetrain_packed"  # in transformers' table of attention functions
# these pass keyword arguments on to attention, and know a token's place from `position_ids` alone
MODEL_TYPES = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}  # 1: positions start at padding_idx + 1


def can_pack(backbone: Any, device: torch.device) -> bool:
    """Whether this encoder takes texts end to end here; on a GPU many short products are slower than padding."""
    config = backbone.config
    return device.type == "cpu" and config.model_type in MODEL_TYPES and not getattr(config, "is_decoder", False)


def make_packed(backbone: Any) -> None:
    """Lets the encoder take texts end to end, and only so; dropout is drawn faster from then on."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    backbone.set_attn_implementation(NAME)
    replace_dropout(backbone)


def packed_states(backbone: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    """Last hidden states [T, D] of texts laid end to end.

    Args:
        backbone: of `make_packed`.
        ids: int64 [T], T = lengths.sum().
        lengths: int64 [N]; texts of one length should be neighbours.
    """
    config = backbone.config
    first = config.pad_token_id + 1 if MODEL_TYPES[config.model_type] else 0
    starts = lengths.cumsum(0) - lengths
    positions = torch.arange(len(ids)) - starts.repeat_interleave(lengths) + first
    runs = tuple((len(list(run)), length) for length, run in groupby(lengths.tolist()))
    return backbone(input_ids=ids[None], position_ids=positions[None], runs=runs).last_hidden_state[0]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    runs: Sequence[tuple[int, int]],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text, in the form that transformers calls.

    Args:
        query, key, value: [1, H, T, E].
        runs: texts and tokens of each, in order.

    Returns:
        [1, T, H, E].
    """
    assert attention_mask is None, "padding in a packed chunk"
    factor = query.size(-1) ** -0.5 if scaling is None else scaling
    rows = [each[0].transpose(0, 1) for each in (query, key, value)]  # [T, H, E]
    if module.training:
        return RunAttention.apply(*rows, tuple(runs), factor, dropout)[None], None
    parts = [
        F.scaled_dot_product_attention(q, k, v, scale=factor).transpose(1, 2).flatten(0, 1)
        for q, k, v in zip(*(in_runs(each, runs) for each in rows), strict=True)
    ]
    return torch.cat(parts)[None], None


def in_runs(rows: Tensor, runs: Sequence[tuple[int, int]]) -> list[Tensor]:
    """[T, H, E] -> [n, H, L, E] of each run."""
    parts = rows.split([count * length for count, length in runs])
    return [part.unflatten(0, run).transpose(1, 2) for part, run in zip(parts, runs, strict=True)]


class RunAttention(torch.autograd.Function):
    """softmax(Q K^T * factor) V with dropout of the weights, run by run; one node in the graph instead of ten a run."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: Any, factor: float, dropout: float) -> Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        probabilities = []
        cells = [count * query.shape[1] * length * length for count, length in runs]
        kept = dropout_mask(sum(cells), dropout).split(cells) if dropout > 0 else None
        blocks = zip(*(in_runs(each, runs) for each in (query, key, value)), in_runs(output, runs), strict=True)
        for number, (q, k, v, out) in enumerate(blocks):
            weights = torch.softmax((q * factor) @ k.transpose(2, 3), dim=-1)  # [n, H, L, L]
            probabilities.append(weights)
            if kept is not None:
                weights = weights * kept[number].view_as(weights).to(weights.dtype)
            out.copy_(weights @ v)
        ctx.save_for_backward(query, key, value, *probabilities, *(kept or ()))
        ctx.runs, ctx.factor, ctx.dropout = runs, factor, dropout
        return output.div_(1 - dropout) if dropout > 0 else output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        runs, factor, keep = ctx.runs, ctx.factor, 1 - ctx.dropout
        query, key, value, *saved = ctx.saved_tensors
        probabilities, kept = saved[: len(runs)], saved[len(runs) :]
        gradient = gradient / keep if kept else gradient
        grads = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in (query, key, value)]
        blocks = zip(*(in_runs(each, runs) for each in (query, key, value, gradient, *grads)), strict=True)
        for number, (q, k, v, above, grad_q, grad_k, grad_v) in enumerate(blocks):
            weights = probabilities[number]
            dropped = weights
            grad_weights = above @ v.transpose(2, 3)  # [n, H, L, L]
            if kept:
                mask = kept[number].view_as(weights).to(weights.dtype)
                dropped = weights * mask
                grad_weights.mul_(mask)
            grad_v.copy_(dropped.transpose(2, 3) @ above)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(factor)
            grad_q.copy_(grad_scores @ k)
            grad_k.copy_(grad_scores.transpose(2, 3) @ q)
        return *grads, None, None, None
