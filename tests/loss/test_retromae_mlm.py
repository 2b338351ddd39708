"""The loss of RetroMAE against a loop over tokens in double precision."""

import math

import pytest
import torch
from bgetrain.loss.retromae_mlm import retromae_mlm


def reference(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """-log softmax of each target, summed, one token at a time in Python floats."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        highest = max(row)
        total += highest + math.log(sum(math.exp(value - highest) for value in row)) - row[target]
    return total


def tokens(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [count, 50] that require a gradient, and targets [count]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 50, generator=generator)
    return logits.requires_grad_(), torch.randint(50, (count,), generator=generator)


def test_loss_is_the_sum_of_both_token_means():
    (encoder, encoder_targets), (decoder, decoder_targets) = tokens(7, 0), tokens(20, 1)
    output = retromae_mlm(encoder, encoder_targets, decoder, decoder_targets, encoder_count=7, decoder_count=20)
    means = reference(encoder, encoder_targets) / 7, reference(decoder, decoder_targets) / 20
    assert output.metrics["encoder_loss"].item() == pytest.approx(means[0], rel=1e-6)
    assert output.metrics["decoder_loss"].item() == pytest.approx(means[1], rel=1e-6)
    assert output.loss.item() == pytest.approx(sum(means), rel=1e-6)
    assert output.loss.requires_grad
    assert not any(value.requires_grad for value in output.metrics.values())


@pytest.mark.parametrize("as_tensor", [False, True])
def test_uneven_chunks_add_up_to_the_mean_over_all_tokens(as_tensor):
    (encoder, encoder_targets), (decoder, decoder_targets) = tokens(9, 0), tokens(30, 1)
    counts = [torch.tensor(9), torch.tensor(30)] if as_tensor else [9, 30]
    parts = [
        retromae_mlm(*chunk, encoder_count=counts[0], decoder_count=counts[1])
        for chunk in zip(
            encoder.split([1, 8, 0]), encoder_targets.split([1, 8, 0]),
            decoder.split([3, 20, 7]), decoder_targets.split([3, 20, 7]), strict=True,
        )
    ]  # fmt: skip
    sum(part.loss for part in parts).backward()
    expected = reference(encoder, encoder_targets) / 9 + reference(decoder, decoder_targets) / 30
    assert sum(part.loss.item() for part in parts) == pytest.approx(expected, rel=1e-6)
    metrics = [sum(part.metrics[name].item() for part in parts) for name in ("encoder_loss", "decoder_loss")]
    assert sum(metrics) == pytest.approx(expected, rel=1e-6)
    # The gradient of a mean of cross-entropies: (softmax - one hot) / count
    for logits, targets, count in ((encoder, encoder_targets, 9), (decoder, decoder_targets, 30)):
        by_hand = logits.detach().softmax(dim=1)
        by_hand[torch.arange(count), targets] -= 1
        torch.testing.assert_close(logits.grad, by_hand / count, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("global_count", [0, 12])
def test_a_chunk_without_labelled_tokens_is_zero_with_a_graph(global_count):
    (encoder, encoder_targets), (decoder, decoder_targets) = tokens(0, 0), tokens(0, 1)
    output = retromae_mlm(
        encoder, encoder_targets, decoder, decoder_targets, encoder_count=global_count, decoder_count=global_count
    )
    assert output.loss.item() == 0
    output.loss.backward()
    assert encoder.grad.shape == decoder.grad.shape == (0, 50)


def test_bf16_logits_are_summed_in_fp32():
    logits, targets = tokens(4096, 0)
    rounded = logits.detach().bfloat16()
    output = retromae_mlm(rounded, targets, rounded, targets, encoder_count=4096, decoder_count=4096)
    assert output.loss.dtype == torch.float32
    # bf16 keeps 8 bits: a sum in it would be off by far more than 1e-5
    assert output.loss.item() == pytest.approx(2 * reference(rounded.float(), targets) / 4096, rel=1e-5)
