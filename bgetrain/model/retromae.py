"""RetroMAE (Xiao et al. 2022, arXiv:2205.12035): an encoder whose [CLS] vector lets a weak decoder rebuild the text.

The decoder is that of staoxiao/RetroMAE at ee37587, src/pretrain/modeling.py:22-69 and enhancedDecoder.py. Submodules
are only ever called, never read for their weights: ZeRO-3 gathers parameters around each call and nowhere else.
"""

# K = positions that the decoder reconstructs

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN


class RetroMAE(nn.Module):
    """A masked language model and the one-layer enhanced decoder that is trained with it and then dropped.

    Attributes:
        lm: the backbone with its MLM head, the part to keep.
        decoder: the enhanced decoder; its predictions go through the MLM head of `lm`.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        """Puts a fresh decoder beside `lm`; its weights come from torch's generator: seed it alike on every rank.

        Args:
            lm: what AutoModelForMaskedLM returns for a BERT.

        Raises:
            ValueError: the backbone is not a BERT.
        """
        super().__init__()
        if lm.config.model_type != "bert":
            raise ValueError(
                f"config.model_type of the backbone must be 'bert' for RetroMAE, got {lm.config.model_type!r}: "
                "start from a BERT with an MLM head, such as bert-base-uncased"
            )
        self.lm = lm
        self.decoder = EnhancedDecoder(lm.config)

    def forward(
        self,
        encoder_ids: Tensor,
        mask: Tensor | None,
        encoder_at: Tensor,
        clean_ids: Tensor,
        visible: Tensor,
        decoder_at: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes MLM logits of encoder and decoder, at the labelled positions only.

        Args:
            encoder_ids: int64 [N, L], texts with the encoder's tokens masked; L <= max_position_embeddings.
            mask: bool [N, L], True on real tokens; None where no token is padding.
            encoder_at: bool [N, L], True where the encoder predicts (M in all).
            clean_ids: int64 [N, L], the texts as they are.
            visible: bool [N, L, L], True where decoder row i may attend to column j; column 0 is the embedding.
            decoder_at: bool [N, L], True where the decoder reconstructs (K in all).

        Returns:
            Logits of the encoder, [M, V], and of the decoder, [K, V], in the order of the positions in the chunk.
        """
        lm: Any = self.lm
        bert = lm.bert
        hidden = bert(input_ids=encoder_ids, attention_mask=mask).last_hidden_state  # [N, L, D]
        embedding = hidden[:, :1]  # [N, 1, D]
        context = torch.cat([embedding, bert.embeddings(input_ids=clean_ids)[:, 1:]], dim=1)  # [N, L, D]
        positions = torch.arange(clean_ids.shape[1], device=clean_ids.device)
        # No LayerNorm, dropout or token type here; the variant with them is DupMAE's (modeling_duplex.py:36-37)
        query = bert.embeddings.position_embeddings(positions) + embedding  # [N, L, D]
        rebuilt = self.decoder(query, context, visible)  # [N, L, D]
        # The head over V tokens outweighs the rest, so it sees labelled positions only
        return lm.cls(hidden[encoder_at]), lm.cls(rebuilt[decoder_at])  # [M, V], [K, V]


class EnhancedDecoder(nn.Module):
    """One transformer layer, LayerNorm after each residual, in which every position has its own context."""

    def __init__(self, config: PretrainedConfig) -> None:
        """Builds the layer with the sizes, activation, dropouts and initial spread of a BERT.

        Args:
            config: a BertConfig; hidden_size is a multiple of num_attention_heads.
        """
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(width, inner)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=config.initializer_range)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """Lets every query attend to the part of the context that it may see.

        Args:
            query: [N, L, D].
            context: [N, L, D], keys and values; column 0 is the embedding of the text.
            visible: bool [N, L, L], True where row i may attend to column j.

        Returns:
            [N, L, D]; rows that see nothing (padding) are finite and mean nothing.
        """
        # A softmax over nothing is NaN in some kernels: such rows look at column 0, which is never padding
        blind = ~visible.any(dim=-1, keepdim=True)  # [N, L, 1]
        allowed = torch.cat([visible[..., :1] | blind, visible[..., 1:]], dim=-1)  # [N, L, L]
        attended = functional.scaled_dot_product_attention(
            self._heads(self.query(query)),
            self._heads(self.key(context)),
            self._heads(self.value(context)),
            attn_mask=allowed.unsqueeze(1),  # [N, 1, L, L]
            dropout_p=self.attention_dropout if self.training else 0.0,
        )  # [N, heads, L, D / heads]
        attended = self.attention_output(attended.transpose(1, 2).flatten(2))  # [N, L, D]
        hidden = self.attention_norm(self.dropout(attended) + query)
        inner = self.activation(self.intermediate(hidden))  # [N, L, intermediate_size]
        return self.output_norm(self.dropout(self.output(inner)) + hidden)

    def _heads(self, tokens: Tensor) -> Tensor:
        """Splits [N, L, D] into [N, heads, L, D / heads]."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
