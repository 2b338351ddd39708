"""RetroMAE (Xiao et al. 2022, arXiv:2205.12035): an encoder whose [CLS] vector lets a weak decoder rebuild the text.

The decoder is that of staoxiao/RetroMAE at ee37587, src/pretrain/modeling.py:22-69 and enhancedDecoder.py; a rotary backbone
lends it its angles where BERT lends its position embeddings.
"""

# M = positions that the encoder predicts, K = positions that the decoder reconstructs, T = real tokens but each text's first

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from bgetrain.model import masked_lm
from bgetrain.types import Predictions

Score = Callable[[Predictions, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]


class RetroMAE(nn.Module):
    """A masked language model and the one-layer enhanced decoder that is trained with it.

    Attributes:
        lm: the backbone with its MLM head.
        decoder: the enhanced decoder; its predictions go through the MLM head of `lm`. None: the encoder alone predicts.
        vocabulary: the last layer of that head, the same parameters once more.
    """

    def __init__(self, lm: PreTrainedModel, *, query: Literal["position", "embedding"] | None, bag_of_words: bool) -> None:
        """Puts a fresh decoder beside `lm`; its weights come from torch's generator: seed it alike on every rank.

        Args:
            lm: what AutoModelForMaskedLM returns for one of `masked_lm.ARCHITECTURES`.
            query: how the decoder asks for the token at a position. "position": the position's embedding plus the text's
                embedding, neither normalised nor dropped out (RetroMAE, modeling.py:45-47); "embedding": the text's
                embedding through the embedding layer in the place of a word's (DupMAE, modeling_duplex.py:36-37). None:
                there is no decoder.
            bag_of_words: the loss reads `Predictions.words` and `bag`.

        Raises:
            ValueError: the backbone is of another architecture.
        """
        super().__init__()
        settings = masked_lm.layer(lm.config)
        self.lm = lm  # first: of parameters that are in two places, this one gives the name
        self.decoder = None if query is None else EnhancedDecoder(settings)
        self.vocabulary = Vocabulary(lm.get_output_embeddings())
        self.query = query
        self.bag_of_words = bag_of_words

    def forward(
        self,
        score: Score | None,
        encoder_ids: Tensor,
        mask: Tensor | None,
        encoder_at: Tensor | None = None,
        clean_ids: Tensor | None = None,
        visible: Tensor | None = None,
        decoder_at: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Encodes masked texts, rebuilds them from their embeddings, and scores both.

        Args:
            score: the loss, of predictions and of weight [V, D] and bias [V] of the vocabulary layer; None: the encoder's
                states [N, L, D] alone are asked for, and none of what follows `mask` is read.
            encoder_ids: int64 [N, L], texts with the encoder's tokens masked; L <= the backbone's positions.
            mask: bool [N, L], True on real tokens; None where no token is padding.
            encoder_at: bool [N, L], True where the encoder predicts; never a text's first token or padding.
            clean_ids: int64 [N, L], the texts as they are.
            visible: bool [N, L, L], True where decoder row i may attend to column j; column 0 is the embedding. Not read
                where there is no decoder.
            decoder_at: bool [N, L], True at the tokens of the text, special tokens excluded: what the decoder reconstructs,
                and the bag of words.

        Returns:
            What `score` returns; without it the states and nothing.
        """
        hidden = masked_lm.encoded(self.lm, encoder_ids, mask)  # [N, L, D]
        if score is None:
            return hidden, {}
        assert encoder_at is not None
        assert clean_ids is not None
        assert decoder_at is not None
        if self.decoder is None:
            rebuilt = None
        else:
            assert visible is not None
            rebuilt = self._rebuilt(self.decoder, hidden[:, :1], clean_ids, visible)  # [N, L, D]
        predictions = self._predictions(hidden, mask, encoder_at, clean_ids, rebuilt, decoder_at)
        result: tuple[Tensor, dict[str, Tensor]] = self.vocabulary(predictions, score)
        return result

    def _rebuilt(self, decoder: "EnhancedDecoder", embedding: Tensor, clean_ids: Tensor, visible: Tensor) -> Tensor:
        """The decoder's states [N, L, D] from texts' embeddings [N, 1, D] and the tokens that each row may see."""
        context = torch.cat([embedding, masked_lm.embedded(self.lm, clean_ids)[:, 1:]], dim=1)  # [N, L, D]
        if self.query == "embedding":
            query = masked_lm.embedded_vectors(self.lm, embedding.expand_as(context))  # [N, L, D]
        else:
            places = masked_lm.position_embeddings(self.lm, clean_ids)
            # A rotary backbone has one query for all positions, which their angles tell apart
            query = embedding if places is None else places + embedding  # [N, 1, D] or [N, L, D]
        states: Tensor = decoder(query, context, visible, masked_lm.rotation(self.lm, clean_ids))
        return states

    def _predictions(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        encoder_at: Tensor,
        clean_ids: Tensor,
        rebuilt: Tensor | None,
        decoder_at: Tensor,
    ) -> Predictions:
        """States for the vocabulary layer, at labelled positions only: it outweighs all the rest."""
        predicted = encoder_at.nonzero(as_tuple=True)  # two of int64 [M]
        real = decoder_at.nonzero(as_tuple=True)  # two of int64 [K]
        words, word_texts = None, None
        if self.bag_of_words:
            seen = torch.ones_like(encoder_at) if mask is None else mask.clone()
            seen[:, 0] = False
            word_texts, columns = seen.nonzero(as_tuple=True)  # int64 [T] each
            words = masked_lm.before_vocabulary(self.lm, hidden[word_texts, columns])  # [T, D]
            encoder = words[encoder_at[word_texts, columns]]  # [M, D]
        else:
            encoder = masked_lm.before_vocabulary(self.lm, hidden[predicted])  # [M, D]
        decoder = encoder[:0] if rebuilt is None else masked_lm.before_vocabulary(self.lm, rebuilt[real])  # [K, D]
        tokens = clean_ids[real]  # [K]
        return Predictions(
            encoder=encoder,
            encoder_targets=clean_ids[predicted],
            decoder=decoder,
            decoder_targets=tokens[: len(decoder)],
            words=words,
            word_texts=word_texts,
            bag=tokens if self.bag_of_words else None,
            bag_texts=real[0] if self.bag_of_words else None,
            num_texts=len(clean_ids),
        )


class Vocabulary(nn.Module):
    """The vocabulary layer where its weights are read: inside a call, around which ZeRO-3 gathers them."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any) -> None:
        """Takes a linear layer's parameters in, the very same objects.

        Args:
            layer: what `get_output_embeddings` of a masked LM returns.
        """
        super().__init__()
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)

    def forward(self, predictions: Predictions, score: Score) -> tuple[Tensor, dict[str, Tensor]]:
        """What `score` makes of predictions and the layer's weight and bias."""
        return score(predictions, self.weight, self.bias)


class EnhancedDecoder(nn.Module):
    """One transformer layer, LayerNorm after each residual, in which every position has its own context."""

    def __init__(self, settings: masked_lm.Layer) -> None:
        """Builds a layer with fresh weights."""
        super().__init__()
        width, inner, attention = settings.hidden_size, settings.intermediate_size, settings.num_heads * settings.head_size
        self.num_heads = settings.num_heads
        self.attention_dropout = settings.attention_dropout
        self.query = nn.Linear(width, attention)
        self.key = nn.Linear(width, attention)
        self.value = nn.Linear(width, attention)
        self.attention_output = nn.Linear(attention, width)
        self.attention_norm = nn.LayerNorm(width, eps=settings.norm_eps)
        self.intermediate = nn.Linear(width, inner)
        self.activation = ACT2FN[settings.activation]
        self.output = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=settings.norm_eps)
        self.dropout = nn.Dropout(settings.dropout)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=settings.initializer_range)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, context: Tensor, visible: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """Lets every query attend to the part of the context that it may see.

        Args:
            query: [N, L, D]; [N, 1, D] where `rotation` alone tells positions apart.
            context: [N, L, D], keys and values; column 0 is the embedding of the text.
            visible: bool [N, L, L], True where row i may attend to column j.
            rotation: cosine and sine of the positions' rotary angles, [L, E] each; None: queries and keys are not rotated.

        Returns:
            [N, L, D]; rows that see nothing (padding) are finite and mean nothing.
        """
        # A softmax over nothing is NaN in some kernels: such rows look at column 0, which is never padding
        blind = ~visible.any(dim=-1, keepdim=True)  # [N, L, 1]
        allowed = torch.cat([visible[..., :1] | blind, visible[..., 1:]], dim=-1)  # [N, L, L]
        attended = functional.scaled_dot_product_attention(
            rotated(self._heads(self.query(query)), rotation),
            rotated(self._heads(self.key(context)), rotation),
            self._heads(self.value(context)),
            attn_mask=allowed.unsqueeze(1),  # [N, 1, L, L]
            dropout_p=self.attention_dropout if self.training else 0.0,
        )  # [N, heads, L, E]
        attended = self.attention_output(attended.transpose(1, 2).flatten(2))  # [N, L, D]
        hidden = self.attention_norm(self.dropout(attended) + query)
        inner = self.activation(self.intermediate(hidden))  # [N, L, intermediate_size]
        return self.output_norm(self.dropout(self.output(inner)) + hidden)

    def _heads(self, tokens: Tensor) -> Tensor:
        """Splits [N, L, heads * E] into [N, heads, L, E]."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def rotated(heads: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turns the pairs (i, i + E / 2) by the angles of each position (Su et al. 2021, arXiv:2104.09864), in fp32.

    Args:
        heads: [N, heads, L or 1, E].
        rotation: cosine and sine, [L, E] each; None: nothing is turned.

    Returns:
        [N, heads, L, E], dtype of `heads`.
    """
    if rotation is None:
        return heads
    cosine, sine = rotation
    exact = heads.float()
    first, second = exact.chunk(2, dim=-1)
    return (exact * cosine + torch.cat([-second, first], dim=-1) * sine).to(heads.dtype)
