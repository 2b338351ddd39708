"""Chunks of token ids to unit vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgetrain.model.pooling import pool


class BiEncoder(nn.Module):
    """One encoder for queries and passages: backbone, pooling, L2 normalisation (C-Pack, arXiv:2309.07597, section 3).

    Args:
        backbone: a transformers encoder that returns `last_hidden_state`.
        pooling: cls | mean | last.
    """

    def __init__(self, backbone: nn.Module, pooling: str) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling

    def forward(self, seeds: Sequence[int] | None, *ids_and_masks: Tensor | None) -> Tensor:
        """Embeds the texts of several chunks; ZeRO-3 wants them in one call where one backward follows.

        Args:
            seeds: one for each chunk, which decides its dropout, so that a second pass repeats the first; None: no dropout.
            ids_and_masks: ids [N, L] and mask [N, L] or None of each chunk in turn.

        Returns:
            fp32 [sum of N, D], each row of length 1.
        """
        embeddings = []
        for number, (ids, mask) in enumerate(zip(ids_and_masks[::2], ids_and_masks[1::2], strict=True)):
            if seeds is not None:
                torch.manual_seed(seeds[number])
            states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state  # [N, L, D]
            embeddings.append(F.normalize(pool(states, mask, self.pooling).float(), dim=-1))
        return torch.cat(embeddings)
