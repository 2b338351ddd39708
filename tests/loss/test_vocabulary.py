"""Cross-entropy in slices against the whole matrix in double precision."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bgetrain.loss import vocabulary
from bgetrain.loss.vocabulary import cross_entropy

WORDS, WIDTH, TOKENS = 50, 8, 10


def made(tokens: int = TOKENS, *, bias: bool = True, dtype=torch.float32, words: int = WORDS):
    """States, weight, bias, targets and uneven scales."""
    draw = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(words, WIDTH, generator=draw).to(dtype).requires_grad_()
    offset = torch.randn(words, generator=draw).to(dtype).requires_grad_() if bias else None
    targets = torch.randint(words, (tokens,), generator=draw)
    targets[::3] = F.linear(states, weight, offset).argmax(1)[::3]  # so that some are right
    return states, weight, offset, targets, torch.rand(tokens, generator=draw)


def reference(states, weight, bias, targets, scales, above: float = 1.0):
    """Losses, whether right, and gradients of above * sum(scales * losses), in double precision."""
    inputs = [each.detach().double().requires_grad_() for each in (states, weight, bias) if each is not None]
    logits = F.linear(*inputs)
    losses = F.cross_entropy(logits, targets, reduction="none")
    (above * (scales.double() * losses).sum()).backward()
    return losses.detach(), logits.argmax(1) == targets, [each.grad for each in inputs]


def grads(*inputs):
    return [each.grad.double() for each in inputs if each is not None]


@pytest.fixture(params=[1, 3, 1000])
def rows(request, monkeypatch):
    monkeypatch.setitem(vocabulary.ELEMENTS, "cpu", request.param * WORDS)
    return request.param


@pytest.mark.parametrize("bias", [True, False])
def test_slices_of_any_length_equal_the_whole_matrix(rows, bias):
    inputs = made(bias=bias)
    total, losses, correct = cross_entropy(*inputs)
    expected, right, gradients = reference(*inputs, above=1024)
    assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    assert_close(total.double(), (inputs[4].double() * expected).sum(), rtol=1e-5, atol=1e-5)
    assert correct.tolist() == right.tolist()
    assert 0 < right.sum() < TOKENS, "some right and some wrong"
    (total * 1024).backward()  # as a gradient scaler does
    for ours, theirs in zip(grads(*inputs[:3]), gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not losses.requires_grad
    assert not correct.requires_grad


def test_logits_far_apart_neither_overflow_nor_vanish():
    states, weight, bias, targets, scales = made()
    inputs = (100 * states.detach()).requires_grad_(), weight, bias, targets, scales
    total, losses, _ = cross_entropy(*inputs)
    expected, _, gradients = reference(*inputs)
    assert expected.max() > 200, "exp(-200) is 0 in fp32"
    assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    total.backward()
    for ours, theirs in zip(grads(*inputs[:3]), gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_word_that_shares_the_highest_score_is_right():
    states, weight = torch.ones(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    right = [bool(cross_entropy(states, weight, None, torch.tensor([word]), torch.ones(1))[2]) for word in range(3)]
    assert right == [True, True, False]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_low_precision_keeps_gradients_of_small_factors(dtype, tolerance, rows):
    states, weight, bias, targets, _ = made(dtype=dtype)
    scales = torch.full((TOKENS,), 1 / 60_000) * torch.tensor([1.0, 0.5]).repeat(TOKENS // 2)
    inputs = states, weight, bias, targets, scales
    total, losses, _ = cross_entropy(*inputs)
    assert total.dtype == losses.dtype == torch.float32
    expected, _, gradients = reference(*inputs, above=1024)
    assert_close(losses.double(), expected, rtol=tolerance, atol=tolerance)
    (total * 1024).backward()
    for each, theirs in zip(inputs[:3], gradients, strict=True):
        assert each.grad.dtype == dtype
        assert (each.grad.double() - theirs).norm() < tolerance * theirs.norm()


def test_gradient_of_the_weight_is_summed_in_fp32(monkeypatch):
    # 4,096 equal tokens, one a slice: a sum in bf16 stops growing at 256 addends
    words = 2
    monkeypatch.setitem(vocabulary.ELEMENTS, "cpu", words)
    states = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(words, 1, dtype=torch.bfloat16, requires_grad=True)
    total, _, _ = cross_entropy(states, weight, None, torch.zeros(4096, dtype=torch.int64), torch.ones(4096))
    total.backward()
    assert weight.grad.flatten().tolist() == [-2048.0, 2048.0]


def test_chunks_add_up_to_the_whole():
    inputs = made()
    cross_entropy(*inputs)[0].backward()
    whole = grads(*inputs[:3])
    for each in inputs[:3]:
        each.grad = None
    states, weight, bias, targets, scales = inputs
    for part in (slice(0, 3), slice(3, 3), slice(3, 10)):
        cross_entropy(states[part], weight, bias, targets[part], scales[part])[0].backward()
    for ours, theirs in zip(grads(*inputs[:3]), whole, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_no_token_is_zero_with_a_graph():
    inputs = made(0)
    total, losses, correct = cross_entropy(*inputs)
    assert total.item() == 0
    assert losses.shape == correct.shape == (0,)
    total.backward()
    assert [each.grad.shape for each in inputs[:3]] == [(0, WIDTH), (WORDS, WIDTH), (WORDS,)]
    assert all(not each.grad.any() for each in inputs[:3])


def test_factors_of_zero_give_zero():
    inputs = *made()[:4], torch.zeros(TOKENS)
    total, _, _ = cross_entropy(*inputs)
    total.backward()
    assert total.item() == 0
    assert all(not each.grad.any() for each in inputs[:3])


def test_only_gradients_that_are_wanted_are_computed(monkeypatch):
    made_for = []
    real = vocabulary.sums_of_gradients

    def spy(*arguments, **keywords):
        found = real(*arguments, **keywords)
        made_for.append([each is not None for each in found])
        return found

    monkeypatch.setattr(vocabulary, "sums_of_gradients", spy)
    states, weight, bias, targets, scales = made()
    with torch.no_grad():
        _, losses, _ = cross_entropy(states, weight, bias, targets, scales)
    cross_entropy(states.detach(), weight.detach(), bias.detach(), targets, scales)
    total, with_frozen, _ = cross_entropy(states, weight.detach(), bias.detach(), targets, scales)
    total.backward()
    assert made_for == [[False] * 3, [False] * 3, [True, False, False]]
    assert torch.equal(losses, with_frozen)
    assert weight.grad is None
    assert_close(states.grad.double(), reference(states, weight, bias, targets, scales)[2][0], rtol=1e-4, atol=1e-4)


def test_backward_needs_neither_states_nor_weight():
    inputs = made()
    _, _, gradients = reference(*inputs)
    total, _, _ = cross_entropy(*inputs)
    saved = {each.data_ptr() for each in total.grad_fn.saved_tensors}
    assert not saved & {each.data_ptr() for each in inputs}, "ZeRO-3 lets go of the weight between forward and backward"
    inputs[1].data.zero_()
    total.backward()
    assert_close(inputs[0].grad.double(), gradients[0], rtol=1e-4, atol=1e-4)


def test_a_second_backward_is_refused_rather_than_scaled_twice():
    total, _, _ = cross_entropy(*made())
    (2 * total).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()
