"""Embeddings of many texts, over all ranks, in order of length."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bgetrain.distributed import gather_arrays, share
from bgetrain.types import Chunk, Ragged, World

BLOCK = 4096  # texts tokenised and ordered by length together


def encode(
    texts: Sequence[str],
    module: nn.Module,
    *,
    tokenize: Callable[[Sequence[str]], Ragged],
    cut: Callable[[Tensor], list[Tensor]],
    chunk: Callable[[Ragged, Tensor], Chunk | Ragged],
    world: World,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Embeds each text; every rank embeds its share and receives all.

    Args:
        texts: N of them, the same on every rank.
        module: a `BiEncoder` on the rank's device, in evaluation mode.
        tokenize: texts -> token ids.
        cut: lengths -> groups of similar length.
        chunk: (token ids, one group) -> padded or packed texts.
        world: all ranks.
        advance: told how many texts have been embedded since it was last told, over all ranks approximately.

    Returns:
        fp32 [N, D], unit rows.
    """
    part = share(len(texts), world)
    blocks = []
    for first in range(part.start, part.stop, BLOCK):
        block = texts[first : min(first + BLOCK, part.stop)]
        ragged = tokenize(block)
        rows: np.ndarray | None = None
        for group in cut(ragged.lengths):
            with torch.inference_mode():
                on_device = [None if each is None else each.to(world.device) for each in chunk(ragged, group)]
                embeddings = module(None, *on_device)[0].float().cpu().numpy()  # [N, D]
            if rows is None:
                rows = np.empty((len(block), embeddings.shape[1]), np.float32)
            rows[group.numpy()] = embeddings
            advance(len(group) * world.size)
        assert rows is not None
        blocks.append(rows)
    own = np.concatenate(blocks) if blocks else np.zeros((0, width(module)), np.float32)
    return gather_arrays(own, world)


def width(module: nn.Module) -> int:
    """D of a `BiEncoder`."""
    backbone: Any = module.backbone
    return int(backbone.config.hidden_size)
