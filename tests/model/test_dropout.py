"""Dropout by 16-bit draws: the share, the scale, the gradient, the seed."""

import pytest
import torch

from bgetrain.model.dropout import FastDropout, dropout_mask


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_probability(probability):
    torch.manual_seed(0)
    kept = dropout_mask(1_000_003, probability, torch.device("cpu"))
    assert kept.shape == (1_000_003,)
    error = 4 * (probability * (1 - probability) / 1e6) ** 0.5 + 1 / (1 << 16)  # four standard deviations and the step
    assert float((~kept).double().mean()) == pytest.approx(probability, abs=error)
    neighbours = (~kept[1:] & ~kept[:-1]).double().mean()
    assert float(neighbours) == pytest.approx(probability**2, abs=4 * error)


def test_kept_elements_and_their_gradients_are_scaled_and_the_others_are_zero():
    layer = FastDropout(0.2).train()
    states = torch.randn(100, 30, requires_grad=True)
    torch.manual_seed(1)
    dropped = layer(states)
    (gradient,) = torch.autograd.grad(dropped.sum(), states)
    factor = dropped.detach() / states.detach()
    assert torch.equal(gradient != 0, dropped != 0)
    torch.testing.assert_close(factor[dropped != 0], torch.full_like(factor[dropped != 0], 1.25))
    torch.testing.assert_close(gradient[dropped != 0], factor[dropped != 0])
    assert layer.eval()(states) is states


def test_the_seed_of_torch_decides():
    torch.manual_seed(2)
    first, second = dropout_mask(1000, 0.5, torch.device("cpu")), dropout_mask(1000, 0.5, torch.device("cpu"))
    torch.manual_seed(2)
    assert torch.equal(dropout_mask(1000, 0.5, torch.device("cpu")), first)
    assert not torch.equal(first, second)
