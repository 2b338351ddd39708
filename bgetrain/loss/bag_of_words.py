"""DupMAE's second decoding: the words of a text, from the best that any of its tokens says for each word."""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bgetrain.loss.vocabulary import passed_on, project, slice_rows, sums_of_gradients

# S texts of a slice, s their tokens

# What a text's maxima, their places and the ordering of these take, in rows of logits.
ROWS_OF_A_TEXT = 12


class Bag(NamedTuple):
    """What the texts should say.

    Attributes:
        rows: N + 1 borders of the texts' states, on the host.
        borders: N + 1 borders of the texts' entries in what follows, on the host.
        texts: int64 [E], ascending: of each different token of each text.
        tokens: int64 [E].
        shares: fp32 [E], > 0, its share in the text's loss.
    """

    rows: list[int]
    borders: list[int]
    texts: Tensor
    tokens: Tensor
    shares: Tensor


def bag_of_words(
    words: Tensor,
    word_texts: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bag: Tensor,
    bag_texts: Tensor,
    *,
    num_texts: int,
    repeated: Literal["once", "accumulated"],
) -> tuple[Tensor, Tensor]:
    """Sum over texts of -sum_v share[v] log softmax(o)[v], o[v] the maximum over a text's states of state . weight[v] + bias[v].

    DupMAE, Xiao et al. 2023, arXiv:2305.02564; staoxiao/RetroMAE src/pretrain/modeling_duplex.py:51-61. As in
    `vocabulary.cross_entropy` the gradients are computed in the forward pass, no [T, V] tensor is kept, and the graph serves one
    backward pass. The gradient of o[v] goes to one token, where the maximum stands: it takes 4 V D operations a text, not 4 V D a
    token. Memory is that of a slice of logits, and the gradients, fp32.

    Args:
        words: [T, D], states of the texts' tokens; the products are in their dtype.
        word_texts: int64 [T], 0 <= text < N, ascending.
        weight: [V, D] of the vocabulary layer.
        bias: [V]; None where it has none.
        bag: int64 [K], the texts' tokens without special tokens.
        bag_texts: int64 [K], 0 <= text < N.
        num_texts: N.
        repeated: share of a token that stands n times among a text's K_t tokens. once: 1 / K_t, so that the shares of a text
            with repetitions add up to less than 1, as DupMAE's data.py:129-131 has it; accumulated: n / K_t.

    Returns:
        fp32 scalar, the sum, with a graph to words, weight and bias.
        fp32 [N], the losses, 0 for texts without a token in `words` or in `bag`; not differentiable.
    """
    wanted = shares(bag, bag_texts, word_texts, num_texts=num_texts, num_words=len(weight), repeated=repeated)
    result: tuple[Tensor, Tensor] = SlicedBagOfWords.apply(words, weight, bias, wanted, torch.is_grad_enabled())
    return result


def shares(bag: Tensor, bag_texts: Tensor, word_texts: Tensor, *, num_texts: int, num_words: int, repeated: str) -> Bag:
    """Gathers each text's different tokens."""
    keys, counts = (bag_texts * num_words + bag).unique(return_counts=True)
    texts = keys // num_words
    lengths = torch.bincount(bag_texts, minlength=num_texts)[texts]
    found = (counts if repeated == "accumulated" else torch.ones_like(counts)) / lengths
    return Bag(borders(word_texts, num_texts), borders(texts, num_texts), texts, keys % num_words, found.float())


def borders(texts: Tensor, num_texts: int) -> list[int]:
    """Where each text begins among ascending numbers of texts, and the end."""
    return [0, *accumulate(torch.bincount(texts, minlength=num_texts).tolist())]


def slices(bag: Bag, rows: int) -> Iterator[tuple[int, int]]:
    """First and last text (exclusive) of runs whose logits fit `rows` rows, or of one text; texts without a loss are left out."""
    first, taken = 0, 0
    for text, ((start, end), (begin, stop)) in enumerate(zip(pairwise(bag.rows), pairwise(bag.borders), strict=True)):
        needed = end - start + ROWS_OF_A_TEXT
        empty = start == end or begin == stop
        if text > first and (empty or taken + needed > rows):
            yield first, text
            first, taken = text, 0
        if empty:
            first = text + 1
        else:
            taken += needed
    if first < len(bag.rows) - 1:
        yield first, len(bag.rows) - 1


class SlicedBagOfWords(torch.autograd.Function):
    """What `bag_of_words` describes; `recorded`: a graph is wanted."""

    @staticmethod
    def forward(ctx: Any, words: Tensor, weight: Tensor, bias: Tensor | None, bag: Bag, recorded: bool) -> tuple[Tensor, Tensor]:
        to_words, to_weight, to_bias = gradients = sums_of_gradients(ctx, words, weight, bias, recorded=recorded)
        matrix, offset = weight.to(words.dtype), None if bias is None else bias.to(words.dtype)
        rows = slice_rows(len(weight), words.device)
        logits = words.new_empty(min(rows, max(1, len(words))), len(weight))
        losses = torch.zeros(len(bag.rows) - 1, device=words.device)
        for first, last in slices(bag, rows):
            highest, places = maxima(words, matrix, offset, bag.rows[first : last + 1], logits)
            losses[first:last] = score(highest, bag, first, last)  # highest becomes d loss / d highest
            here = slice(bag.rows[first], bag.rows[last])
            if to_words is not None:
                to_words[here] = gather_words(highest, places, matrix, here.stop - here.start)
            if to_weight is not None:
                add_states(to_weight, highest, places, words[here])
            if to_bias is not None:
                to_bias += highest.sum(0)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        return *passed_on(ctx, ctx.saved_tensors, above[0]), None, None


def maxima(words: Tensor, weight: Tensor, bias: Tensor | None, rows: list[int], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each text's best logit for each word, fp32 [S, V], and in which of the slice's states it stands, int64 [S, V]."""
    shape = len(rows) - 1, len(weight)
    highest = torch.full(shape, -torch.inf, device=words.device)
    places = torch.zeros(shape, dtype=torch.int64, device=words.device)
    for first in range(rows[0], rows[-1], len(logits)):
        last = min(first + len(logits), rows[-1])
        project(words[first:last], weight, bias, out=logits[: last - first])
        for text, (start, end) in enumerate(pairwise(rows)):
            start, end = max(start, first), min(end, last)
            if start < end:
                values, where = logits[start - first : end - first].max(0)
                better = values > highest[text]
                places[text] = torch.where(better, where.add_(start - rows[0]), places[text])
                highest[text] = torch.maximum(highest[text], values)
    return highest, places


def score(highest: Tensor, bag: Bag, first: int, last: int) -> Tensor:
    """Losses of texts first .. last - 1, fp32 [S]; `highest` [S, V] is replaced by its gradient."""
    entries = slice(bag.borders[first], bag.borders[last])
    texts, tokens, share = bag.texts[entries] - first, bag.tokens[entries], bag.shares[entries]
    said = highest.new_zeros(len(highest)).index_add_(0, texts, share * highest[texts, tokens])
    whole = highest.new_zeros(len(highest)).index_add_(0, texts, share)
    top = highest.amax(1, keepdim=True)
    total = highest.sub_(top).exp_().sum(1, keepdim=True)
    highest.mul_(whole[:, None] / total)
    highest[texts, tokens] -= share
    return whole * (total.log() + top)[:, 0] - said


def gather_words(slopes: Tensor, places: Tensor, weight: Tensor, num_rows: int) -> Tensor:
    """For each of the slice's states the sum of slope * weight over the words whose maximum stands there, [s, D]."""
    ordered, order = places.flatten().int().sort()
    starts = torch.searchsorted(ordered, torch.arange(num_rows, dtype=ordered.dtype, device=ordered.device))
    chosen = slopes.flatten()[order].to(weight.dtype)
    return F.embedding_bag(order % len(weight), weight, starts, mode="sum", per_sample_weights=chosen)


def add_states(total: Tensor, slopes: Tensor, places: Tensor, words: Tensor) -> None:
    """Adds to each word's row of `total` [V, D] the sum over texts of slope * the state where the word's maximum stands."""
    exact, step = words.float(), slice_rows(total.shape[1], total.device)
    for first in range(0, len(total), step):
        block = slice(first, first + step)
        where, chosen = places[:, block].T.contiguous(), slopes[:, block].T.contiguous()
        total[block] += F.embedding_bag(where, exact, mode="sum", per_sample_weights=chosen)
