"""Objectives of masked auto-encoding: RetroMAE, DupMAE, and the masked language model alone.

Every mean is over the step's global batch, so every labelled token (of a bag of words: every text) weighs the same. The authors'
code (staoxiao/RetroMAE ee37587, src/pretrain/modeling.py:61, modeling_duplex.py:80) averages over the tokens of each rank and
then over ranks, which weighs a token the more, the fewer its rank holds; the two agree where all ranks hold as many.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bgetrain.loss.bag_of_words import bag_of_words
from bgetrain.loss.vocabulary import cross_entropy
from bgetrain.types import NonNegativeFloat, Objective, Predictions, Totals


def retromae(*, query: Literal["position", "embedding"]) -> Objective:
    """Token-mean cross-entropy of the encoder plus that of the decoder, 1 : 1 (arXiv:2205.12035, section 3).

    Args:
        query: how the decoder asks for a token.

    Returns:
        Its loss is this chunk's cross-entropy, summed over tokens and divided by the global counts; adding the losses (or
        gradients) of all chunks of all ranks gives that of the global batch. 0, with a graph, where the chunk has no labelled
        token. Metrics: `encoder_loss` and `decoder_loss`, the addends of the loss; `encoder_accuracy` and `decoder_accuracy`,
        the shares of labelled tokens predicted right.
    """
    return Objective(query, bag_of_words=False, score=reconstruction)


def dupmae(
    *, query: Literal["position", "embedding"], bag_of_words_weight: NonNegativeFloat, repeated: Literal["once", "accumulated"]
) -> Objective:
    """RetroMAE's loss and the bag of words that the encoder's tokens predict together (arXiv:2305.02564).

    Args:
        query: how the decoder asks for a token.
        bag_of_words_weight: of the mean over the texts of the global batch of the bag's cross-entropy, >= 0.
        repeated: a token that stands in a text n times weighs 1 (once) or n (accumulated) over the text's length.

    Returns:
        As `retromae`; metrics also `bag_of_words_loss`, without its weight.
    """
    score = partial(reconstruction_and_bag, bag_of_words_weight=bag_of_words_weight, repeated=repeated)
    return Objective(query, bag_of_words=True, score=score)


def mlm() -> Objective:
    """Token-mean cross-entropy of the encoder alone.

    Returns:
        As `retromae`, without a decoder and its metrics.
    """
    return Objective(None, bag_of_words=False, score=encoder_alone)


def reconstruction(
    predictions: Predictions, weight: Tensor, bias: Tensor | None, *, totals: Totals
) -> tuple[Tensor, dict[str, Tensor]]:
    """RetroMAE's `ScoreWords`: both in one call, for each call has an fp32 gradient as large as the vocabulary layer."""
    parts = {"encoder": len(predictions.encoder), "decoder": len(predictions.decoder)}
    scales = torch.cat([
        torch.full((count,), 1 / max(total, 1), device=weight.device)  # a step whose words are all too long has no token at all
        for count, total in zip(parts.values(), totals, strict=False)
    ])  # fmt: skip
    states = torch.cat([predictions.encoder, predictions.decoder])
    targets = torch.cat([predictions.encoder_targets, predictions.decoder_targets])
    loss, losses, correct = cross_entropy(states, weight, bias, targets, scales)
    metrics = {}
    for name, figures in (("loss", scales * losses), ("accuracy", scales * correct)):
        for part, values in zip(parts, figures.split(list(parts.values())), strict=True):
            metrics[f"{part}_{name}"] = values.sum()
    return loss, metrics


def reconstruction_and_bag(
    predictions: Predictions,
    weight: Tensor,
    bias: Tensor | None,
    *,
    totals: Totals,
    bag_of_words_weight: float,
    repeated: Literal["once", "accumulated"],
) -> tuple[Tensor, dict[str, Tensor]]:
    """DupMAE's `ScoreWords`."""
    words, word_texts, bag, bag_texts = predictions.words, predictions.word_texts, predictions.bag, predictions.bag_texts
    assert words is not None
    assert word_texts is not None
    assert bag is not None
    assert bag_texts is not None
    loss, metrics = reconstruction(predictions, weight, bias, totals=totals)
    total, _ = bag_of_words(words, word_texts, weight, bias, bag, bag_texts, num_texts=predictions.num_texts, repeated=repeated)
    mean = total / max(totals.texts, 1)
    return loss + bag_of_words_weight * mean, metrics | {"bag_of_words_loss": mean.detach()}


def encoder_alone(
    predictions: Predictions, weight: Tensor, bias: Tensor | None, *, totals: Totals
) -> tuple[Tensor, dict[str, Tensor]]:
    """The masked language model's `ScoreWords`."""
    loss, metrics = reconstruction(predictions, weight, bias, totals=totals)
    return loss, {name: value for name, value in metrics.items() if name.startswith("encoder")}
