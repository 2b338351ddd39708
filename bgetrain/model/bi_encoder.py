"""Chunks of token ids to unit vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgetrain.model.packed import make_packed, packed_states
from bgetrain.model.pooling import pool, pool_packed


class BiEncoder(nn.Module):
    """One encoder for queries and passages: backbone, pooling, L2 normalisation (C-Pack, arXiv:2309.07597, section 3).

    Args:
        backbone: a transformers encoder that returns `last_hidden_state`.
        pooling: cls | mean | last.
        packed: chunks are texts laid end to end; else padded.
    """

    def __init__(self, backbone: nn.Module, pooling: str, *, packed: bool) -> None:
        super().__init__()
        self.backbone, self.pooling, self.packed = backbone, pooling, packed
        if packed:
            make_packed(backbone)

    def forward(self, seeds: Sequence[int] | None, *chunks: Tensor | None) -> Tensor:
        """Embeds the texts of several chunks; ZeRO-3 wants them in one call where one backward follows.

        Args:
            seeds: one for each chunk, which decides its dropout, so that a second pass repeats the first; None: no dropout.
            chunks: two tensors of each chunk in turn: ids [T] and lengths [N] where packed, else ids [N, L] and mask [N, L]
                or None.

        Returns:
            fp32 [sum of N, D], each row of length 1.
        """
        embeddings = []
        for number, (ids, other) in enumerate(zip(chunks[::2], chunks[1::2], strict=True)):
            assert ids is not None
            if seeds is not None:
                torch.manual_seed(seeds[number])
            if self.packed:
                assert other is not None
                pooled = pool_packed(packed_states(self.backbone, ids, other), other, self.pooling)
            else:
                states = self.backbone(input_ids=ids, attention_mask=other).last_hidden_state  # [N, L, D]
                pooled = pool(states, other, self.pooling)
            embeddings.append(F.normalize(pooled.float(), dim=-1))
        return torch.cat(embeddings)
