"""Texts laid end to end through a transformers encoder: no padding is computed, attention stays within each text.

Everything but attention works on single tokens, so that a row of T tokens is as good as N padded texts. Attention goes over
blocks of texts of like length, which stand beside each other where texts come in order of length, and pads within them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bgetrain.model.dropout import dropout_mask, replace_dropout
from bgetrain.model.masked_lm import first_position

# n texts of a block; H heads, E = D / H

LIKE = 0.8  # of the longest text's tokens: fewer, larger products for at most a third of padding in them; measured
NAME = "bgetrain_packed"  # in transformers' table of attention functions
# these pass keyword arguments on to attention, and know a token's place from `position_ids` alone
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")


class Block(NamedTuple):
    """Neighbouring texts of like length, attended to together.

    Attributes:
        texts: n.
        width: L, tokens of the longest.
        tokens: of them all.
        places: int64 [n * L], where each stands among the block's tokens, padding at 0; None where nothing is padded.
        padding: bool [n, 1, 1, L]; None where nothing is padded.
        back: int64 [tokens], where each token stands among [n * L]; None where nothing is padded.
    """

    texts: int
    width: int
    tokens: int
    places: Tensor | None
    padding: Tensor | None
    back: Tensor | None

    def spread(self, rows: Tensor) -> Tensor:
        """[tokens, H, E] -> [n, H, L, E]."""
        padded = rows if self.places is None else rows[self.places]
        return padded.unflatten(0, (self.texts, self.width)).transpose(1, 2)

    def gather(self, blocks: Tensor) -> Tensor:
        """[n, H, L, E] -> [tokens, H, E]."""
        rows = blocks.transpose(1, 2).flatten(0, 1)
        return rows if self.back is None else rows[self.back]


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


def packed_states(backbone: Any, ids: Tensor, lengths: Tensor, at: Tensor | None) -> Tensor:
    """Last hidden states of texts laid end to end.

    The last layer is computed at the places asked for alone: for one state of a text of 60 tokens it is left with the
    keys and values, a sixth of its products.

    Args:
        backbone: of `make_packed`.
        ids: int64 [T], T = lengths.sum().
        lengths: int64 [N]; texts of like length should be neighbours.
        at: int64 [N], a place in each text, counted over all texts; None: all places.

    Returns:
        [N, D], or [T, D] where `at` is None.
    """
    starts = lengths.cumsum(0) - lengths
    positions = torch.arange(len(ids)) - starts.repeat_interleave(lengths) + first_position(backbone.config)
    states = backbone.embeddings(input_ids=ids[None], position_ids=positions[None])
    blocks = blocks_of(lengths.tolist())
    *layers, last = backbone.encoder.layer
    for layer in layers:
        states = layer(states, None, blocks=blocks)
    if at is None:
        return last(states, None, blocks=blocks)[0]
    return states_at(last, states[0], blocks, at)


def states_at(layer: Any, states: Tensor, blocks: Sequence[Block], at: Tensor) -> Tensor:
    """One layer's output [N, D] at one place of each text, from its input [T, D] (BertLayer of transformers 5)."""
    attention = layer.attention.self
    heads = (-1, attention.num_attention_heads, attention.attention_head_size)
    here = states[at]
    query, key, value = (part.view(heads) for part in (attention.query(here), attention.key(states), attention.value(states)))
    dropout = attention.dropout.p if layer.training else 0.0
    mixed = BlockAttention.apply(query, key, value, blocks, attention.scaling, dropout)  # [N, H, E]
    return layer.feed_forward_chunk(layer.attention.output(mixed.flatten(1), here))


def blocks_of(lengths: Sequence[int]) -> list[Block]:
    """Puts neighbouring texts together while the shortest has at least `LIKE` of the longest's tokens."""
    blocks, first = [], 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or not LIKE * lengths[last] <= lengths[first] <= lengths[last] / LIKE:
            blocks.append(block_of(lengths[first:last]))
            first = last
    return blocks


def block_of(lengths: Sequence[int]) -> Block:
    width, tokens = max(lengths), sum(lengths)
    if tokens == width * len(lengths):
        return Block(len(lengths), width, tokens, None, None, None)
    own = torch.tensor(lengths)
    real = torch.arange(width) < own[:, None]  # [n, L]
    back = real.flatten().nonzero().squeeze(1)
    # padding copies the text's own first token: one of another text, if not finite, would spoil this one at weight 0
    places = (own.cumsum(0) - own).repeat_interleave(width)
    places[back] = torch.arange(tokens)
    return Block(len(lengths), width, tokens, places, ~real[:, None, None, :], back)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: Sequence[Block],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text, in the form that transformers calls.

    Args:
        query, key, value: [1, H, T, E].
        blocks: of the texts, in order.

    Returns:
        [1, T, H, E].
    """
    assert attention_mask is None, "padding in a packed chunk"
    factor = query.size(-1) ** -0.5 if scaling is None else scaling
    rows = [each[0].transpose(0, 1) for each in (query, key, value)]  # [T, H, E]
    return BlockAttention.apply(*rows, blocks, factor, dropout if module.training else 0.0)[None], None


class BlockAttention(torch.autograd.Function):
    """softmax(Q K^T * factor) V with dropout of the weights, block by block; one node in the graph instead of ten a block.

    Queries are all tokens [T, H, E], or one of each text [N, H, E].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], factor: float, dropout: float
    ) -> Tensor:
        single = len(query) < len(key)
        outputs, probabilities, kept = [], [], []
        for block, q, k, v in split(blocks, single, query, key, value):
            scores = (q * factor) @ k.transpose(2, 3)  # [n, H, L, L] or [n, H, 1, L]
            if block.padding is not None:
                scores.masked_fill_(block.padding, -torch.inf)
            weights = torch.softmax(scores, dim=-1)
            probabilities.append(weights)
            if dropout > 0:
                kept.append(dropout_mask(weights.numel(), dropout, weights.device).view_as(weights))
                weights = weights * kept[-1]
            mixed = weights @ v
            outputs.append(mixed.squeeze(2) if single else block.gather(mixed))
        ctx.save_for_backward(query, key, value, *probabilities, *kept)
        ctx.blocks, ctx.factor, ctx.dropout, ctx.single = blocks, factor, dropout, single
        output = torch.cat(outputs)
        return output.div_(1 - dropout) if dropout > 0 else output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        blocks, factor = ctx.blocks, ctx.factor
        query, key, value, *saved = ctx.saved_tensors
        probabilities, kept = saved[: len(blocks)], saved[len(blocks) :]
        gradient = gradient / (1 - ctx.dropout) if kept else gradient
        grads: list[list[Tensor]] = [[], [], []]
        for number, (block, q, above, k, v) in enumerate(split(blocks, ctx.single, query, gradient, key, value)):
            weights = probabilities[number]
            if block.padding is not None and not ctx.single:
                above = above.masked_fill(block.padding.transpose(2, 3), 0.0)  # rows of padding are copies of real ones
            to_weights = above @ v.transpose(2, 3)
            dropped = weights
            if kept:
                dropped = weights * kept[number]
                to_weights.mul_(kept[number])
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype).mul_(factor)
            to_query = to_scores @ k
            grads[0].append(to_query.squeeze(2) if ctx.single else block.gather(to_query))
            grads[1].append(block.gather(to_scores.transpose(2, 3) @ q))
            grads[2].append(block.gather(dropped.transpose(2, 3) @ above))
        return *map(torch.cat, grads), None, None, None


def split(blocks: Sequence[Block], single: bool, *rows: Tensor) -> Iterator[tuple[Any, ...]]:
    """Each block with its part of `rows` as [n, H, L, E]; all but the last two may be one row a text, then [n, H, 1, E]."""
    tokens, texts = [block.tokens for block in blocks], [block.texts for block in blocks]
    parts = [each.split(texts if single and place < len(rows) - 2 else tokens) for place, each in enumerate(rows)]
    for block, *pieces in zip(blocks, *parts, strict=True):
        spread = [
            piece.unsqueeze(2) if single and place < len(rows) - 2 else block.spread(piece) for place, piece in enumerate(pieces)
        ]
        yield block, *spread
