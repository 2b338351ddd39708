"""The bag of words against a loop over texts in double precision, and by hand."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bgetrain.loss import bag_of_words as module
from bgetrain.loss import vocabulary
from bgetrain.loss.bag_of_words import bag_of_words

WORDS, WIDTH = 40, 8
TEXTS = [7, 1, 0, 12, 5, 3]  # tokens, without the first, of each
BAGS = [6, 2, 3, 9, 0, 2]  # the third text has no state, the fifth no bag


def made(*, bias: bool = True, dtype=torch.float32):
    """States, their texts, weight, bias, bags with repetitions, their texts."""
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(sum(TEXTS), WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, WIDTH, generator=draw).to(dtype).requires_grad_()
    offset = torch.randn(WORDS, generator=draw).to(dtype).requires_grad_() if bias else None
    bag = torch.randint(6, (sum(BAGS),), generator=draw)  # of six words only: they repeat
    return states, texts_of(TEXTS), weight, offset, bag, texts_of(BAGS)


def texts_of(counts: list[int]) -> torch.Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def reference(states, word_texts, weight, bias, bag, bag_texts, *, repeated: str, above: float = 1.0):
    """Losses of the texts and gradients of above * their sum, text by text and token by token, in double precision."""
    inputs = [each.detach().double().requires_grad_() for each in (states, weight, bias) if each is not None]
    losses = torch.zeros(len(TEXTS), dtype=torch.float64)
    for text in range(len(TEXTS)):
        tokens = bag[bag_texts == text].tolist()
        if not tokens or not (word_texts == text).any():
            continue
        logits = F.linear(inputs[0][word_texts == text], *inputs[1:])
        logarithms = logits.max(0).values.log_softmax(0)
        share = torch.zeros(WORDS, dtype=torch.float64)
        for token in tokens:
            share[token] = 1 / len(tokens) + (share[token] if repeated == "accumulated" else 0)
        losses[text] = -(share * logarithms).sum()
    (above * losses.sum()).backward()
    return losses.detach(), [each.grad for each in inputs]


def ours(inputs, *, repeated: str = "once", num_texts: int = len(TEXTS)):
    return bag_of_words(*inputs, num_texts=num_texts, repeated=repeated)


def parameters(inputs):
    return [each for each in (inputs[0], inputs[2], inputs[3]) if each is not None]


# a row a slice: each text in as many slices as it has tokens; 30: two short texts in one; 1000: all that lie side by side
@pytest.mark.parametrize("rows", [1, 3, 30, 1000])
@pytest.mark.parametrize("repeated", ["once", "accumulated"])
@pytest.mark.parametrize("bias", [True, False])
def test_slices_of_any_length_equal_a_loop_over_texts(monkeypatch, rows, repeated, bias):
    monkeypatch.setitem(vocabulary.ELEMENTS, "cpu", rows * WORDS)
    inputs = made(bias=bias)
    total, losses = ours(inputs, repeated=repeated)
    expected, gradients = reference(*inputs, repeated=repeated, above=1024)
    assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    assert_close(total.double(), expected.sum(), rtol=1e-5, atol=1e-5)
    (total * 1024).backward()
    for each, theirs in zip(parameters(inputs), gradients, strict=True):
        assert_close(each.grad.double(), theirs, rtol=1e-4, atol=1e-3)  # of gradients up to 1e3
    assert not losses.requires_grad


def test_a_text_longer_than_a_slice_equals_one_slice(monkeypatch):
    draw = torch.Generator().manual_seed(2)
    states, weight = torch.randn(100, WIDTH, generator=draw), torch.randn(WORDS, WIDTH, generator=draw)
    found = []
    for rows in (7, 1000):
        monkeypatch.setitem(vocabulary.ELEMENTS, "cpu", rows * WORDS)
        inputs = [states.clone().requires_grad_(), torch.zeros(100, dtype=torch.int64), weight.clone().requires_grad_(), None]
        total, _ = ours([*inputs, torch.tensor([1, 5]), torch.tensor([0, 0])], num_texts=1)
        total.backward()
        found.append((total.detach(), inputs[0].grad, inputs[2].grad))
    for small, large in zip(*found, strict=True):
        assert_close(small, large, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("repeated", "expected"), [("once", 2 / 3 * math.log(4)), ("accumulated", math.log(4))])
def test_repeated_tokens_by_hand(repeated, expected):
    # four words equally likely; the text is "1 1 2": 1/3 + 1/3 of it, or 2/3 + 1/3
    states, weight = torch.ones(2, 3), torch.zeros(4, 3, requires_grad=True)
    total, losses = bag_of_words(
        states, torch.zeros(2, dtype=torch.int64), weight, None, torch.tensor([1, 1, 2]), torch.zeros(3, dtype=torch.int64),
        num_texts=1, repeated=repeated,
    )  # fmt: skip
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert losses.tolist() == pytest.approx([expected], rel=1e-6)


def test_the_best_of_all_tokens_counts_by_hand():
    # word 0 is said by the second token (2), word 1 by the first (3)
    states = torch.tensor([[1.0, 3.0], [2.0, -1.0]], requires_grad=True)
    zeros = torch.zeros(2, dtype=torch.int64)
    total, _ = bag_of_words(states, zeros, torch.eye(2), None, zeros[:1], zeros[:1], num_texts=1, repeated="once")
    assert float(total.detach()) == pytest.approx(math.log(1 + math.e), rel=1e-6)
    total.backward()
    other = 1 / (1 + math.exp(-1))
    assert_close(states.grad, torch.tensor([[0.0, other], [-other, 0.0]]))


def test_of_equal_maxima_one_takes_the_gradient():
    states, zeros = torch.ones(3, 2, requires_grad=True), torch.zeros(3, dtype=torch.int64)
    total, _ = bag_of_words(states, zeros, torch.eye(2), None, zeros[:1], zeros[:1], num_texts=1, repeated="once")
    total.backward()
    assert_close(states.grad.sum(0), torch.tensor([-0.5, 0.5]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_low_precision_keeps_gradients_of_small_factors(dtype, tolerance):
    inputs = made(dtype=dtype)
    total, losses = ours(inputs)
    expected, gradients = reference(*inputs, repeated="once", above=1024 / 60_000)
    assert total.dtype == losses.dtype == torch.float32
    assert_close(losses.double(), expected, rtol=tolerance, atol=tolerance)
    (total / 60_000 * 1024).backward()
    for each, theirs in zip(parameters(inputs), gradients, strict=True):
        assert each.grad.dtype == dtype
        # a maximum may stand elsewhere where rounding makes two equal
        assert (each.grad.double() - theirs).norm() < 2 * tolerance * theirs.norm()


def test_texts_without_states_or_without_a_bag_count_nothing():
    inputs = made()
    total, losses = ours(inputs)
    assert (losses == 0).tolist() == [not tokens or not bag for tokens, bag in zip(TEXTS, BAGS, strict=True)]
    total.backward()
    assert not inputs[0].grad[inputs[1] == 4].any()
    assert inputs[0].grad[inputs[1] == 3].any()


@pytest.mark.parametrize("empty", ["bag", "states", "both"])
def test_a_chunk_without_a_bag_is_zero_with_a_graph(empty):
    states, word_texts, weight, bias, bag, bag_texts = made()
    if empty != "states":
        bag, bag_texts = bag[:0], bag_texts[:0]
    if empty != "bag":
        states, word_texts = states.detach()[:0].requires_grad_(), word_texts[:0]
    total, losses = ours((states, word_texts, weight, bias, bag, bag_texts))
    assert total.item() == 0
    assert losses.tolist() == [0.0] * len(TEXTS)
    total.backward()
    assert all(each.grad.shape == each.shape and not each.grad.any() for each in (states, weight, bias))


def test_only_gradients_that_are_wanted_are_computed(monkeypatch):
    inputs = made()
    monkeypatch.setattr(module, "gather_words", lambda *_: pytest.fail("nobody asked for the gradient of the states"))
    monkeypatch.setattr(module, "add_states", lambda *_: pytest.fail("nobody asked for the gradient of the weight"))
    with torch.no_grad():
        total, losses = ours(inputs)
    expected, _ = reference(*inputs, repeated="once")
    assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    assert not total.requires_grad


def test_backward_needs_neither_states_nor_weight():
    inputs = made()
    total, _ = ours(inputs)
    saved = {each.data_ptr() for each in total.grad_fn.saved_tensors}
    assert not saved & {each.data_ptr() for each in inputs}
