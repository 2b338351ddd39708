"""Texts to batches for masked auto-encoding."""

from collections.abc import Callable
from typing import Any

import torch

from bgetrain.data.plan import Plan
from bgetrain.data.tokenize import tokenize_words
from bgetrain.types import TextBatch, Texts


def text_batches(texts: Texts, tokenizer: Any, plan: Plan, part: range, *, max_len: int) -> Callable[[int], TextBatch]:
    """Makes this rank's batch of a step, as a function of the step alone.

    Args:
        texts: what is read.
        tokenizer: a fast tokenizer of transformers.
        plan: the order of the texts.
        part: this rank's positions in the global batch.
        max_len: tokens of a text; longer ones are cut.

    Returns:
        step (from 1) -> TextBatch.
    """

    def batch(step: int) -> TextBatch:
        draw = plan.draw(step, part)
        text, words = tokenize_words(tokenizer, texts.take(draw.rows.tolist()), max_len)
        return TextBatch(text, words, torch.arange(part.start, part.stop), plan.epoch(step))

    return batch
