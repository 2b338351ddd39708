"""Pooling by hand."""

import pytest
import torch

from bgetrain.model.pooling import pool

STATES = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]], [[7.0, 8.0], [9.0, 1.0], [100.0, 100.0]]])  # [2, 3, 2]
MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize(
    ("pooling", "masked", "whole"),
    [
        ("cls", [[1.0, 2.0], [7.0, 8.0]], [[1.0, 2.0], [7.0, 8.0]]),
        ("mean", [[3.0, 2.0], [8.0, 4.5]], [[3.0, 2.0], [116 / 3, 109 / 3]]),
        ("last", [[5.0, 0.0], [9.0, 1.0]], [[5.0, 0.0], [100.0, 100.0]]),
    ],
)
def test_pooling_is_that_of_the_real_tokens(pooling, masked, whole):
    torch.testing.assert_close(pool(STATES, MASK, pooling), torch.tensor(masked), rtol=0, atol=0)
    torch.testing.assert_close(pool(STATES, None, pooling), torch.tensor(whole))
    full = torch.ones_like(MASK)
    torch.testing.assert_close(pool(STATES, full, pooling), pool(STATES, None, pooling))


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_gets_no_gradient(pooling):
    states = STATES.clone().requires_grad_()
    pool(states, MASK, pooling).sum().backward()
    assert states.grad[1, 2].tolist() == [0.0, 0.0]
    assert states.grad.abs().sum() > 0
