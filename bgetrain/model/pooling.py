"""Token states to one vector a text."""

import torch
from torch import Tensor


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Reduces each row to one vector.

    Args:
        states: [N, L, D].
        mask: bool [N, L], True on real tokens, which stand to the left of padding; None: all are real.
        pooling: cls: the first token's state; mean: the average of real tokens' states; last: the last real token's.

    Returns:
        [N, D].
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        if mask is None:
            return states[:, -1]
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    assert pooling == "mean", pooling
    if mask is None:
        return states.mean(1)
    weights = mask.to(states.dtype)[:, :, None]  # [N, L, 1]
    return (states * weights).sum(1) / weights.sum(1)


def place_of(lengths: Tensor, pooling: str) -> Tensor | None:
    """Of texts laid end to end, where the token stands whose state is the text's: int64 [N]; None: all tokens count.

    Args:
        lengths: int64 [N], each > 0.
        pooling: cls | mean | last.
    """
    ends = lengths.cumsum(0)
    return {"cls": ends - lengths, "last": ends - 1, "mean": None}[pooling]


def average(states: Tensor, lengths: Tensor) -> Tensor:
    """Means [N, D] over the states [T, D] of each of N texts laid end to end."""
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, owner, states)
    return sums / lengths[:, None].to(states.dtype)
