"""Chunks of token ids to unit vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgetrain.model.packed import make_packed, packed_states
from bgetrain.model.pooling import average, place_of, pool


class BiEncoder(nn.Module):
    """One encoder for queries and passages: backbone, pooling, L2 normalisation (C-Pack, arXiv:2309.07597, section 3).

    Args:
        backbone: a transformers encoder that returns `last_hidden_state`.
        pooling: cls | mean | last.
        packed: chunks are texts laid end to end; else padded.
        learnable_temperature: with a parameter that the loss reads, returned by each call.
        normalized: False: vectors keep their lengths; never in training.
    """

    def __init__(
        self, backbone: nn.Module, pooling: str, *, packed: bool, learnable_temperature: bool = False, normalized: bool = True
    ) -> None:
        super().__init__()
        self.normalized = normalized
        # a shift of log(1 / temperature) from its first value: near 0 bf16 is fine enough for it; deepspeed wants a dimension
        self.temperature_shift = nn.Parameter(torch.zeros(1)) if learnable_temperature else None
        self.backbone, self.pooling, self.packed = backbone, pooling, packed
        if packed:
            make_packed(backbone)

    def forward(self, seeds: Sequence[int] | None, *chunks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embeds the texts of several chunks; ZeRO-3 wants them in one call where one backward follows.

        Args:
            seeds: one for each chunk, which decides its dropout, so that a second pass repeats the first; None: no dropout.
            chunks: two tensors of each chunk in turn: ids [T] and lengths [N] where packed, else ids [N, L] and mask [N, L]
                or None.

        Returns:
            fp32 [sum of N, D], each row of length 1 where `normalized`.
            [1], the temperature's shift; None where it is not learnt.
        """
        embeddings = []
        for number, (ids, other) in enumerate(zip(chunks[::2], chunks[1::2], strict=True)):
            assert ids is not None
            if seeds is not None:
                torch.manual_seed(seeds[number])
            if self.packed:
                assert other is not None
                at = place_of(other, self.pooling)
                states = packed_states(self.backbone, ids, other, at)
                pooled = average(states, other) if at is None else states
            else:
                states = self.backbone(input_ids=ids, attention_mask=other).last_hidden_state  # [N, L, D]
                pooled = pool(states, other, self.pooling)
            embeddings.append(F.normalize(pooled.float(), dim=-1) if self.normalized else pooled.float())
        # a copy: ZeRO-3 takes the parameter itself away after the call
        shift = None if self.temperature_shift is None else self.temperature_shift * 1.0
        return torch.cat(embeddings), shift
