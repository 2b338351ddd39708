"""Texts to batches for masked auto-encoding."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bgetrain.data.plan import Plan
from bgetrain.data.tokenize import join, pad, tokenize_words
from bgetrain.sources import Texts
from bgetrain.types import Ragged, TextBatch, WordChunk


class Tokens(Protocol):
    """What is trained on, as token ids: one item is a text cut at its limit, or a span of a document.

    Attributes:
        facts: of what was prepared, to state before the first step.
    """

    facts: dict[str, str]

    def __len__(self) -> int:
        """Items."""

    def take(self, indices: Sequence[int]) -> tuple[Ragged, Tensor]:
        """The items at `indices`, and the word of each token as `TextBatch.words` has it; at least one index."""


class Truncated:
    """Each text's first `max_len` tokens, special tokens included, made when they are asked for."""

    def __init__(self, texts: Texts, tokenizer: Any, max_len: int) -> None:
        self.texts, self.tokenizer, self.max_len = texts, tokenizer, max_len
        self.facts: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> tuple[Ragged, Tensor]:
        return tokenize_words(self.tokenizer, self.texts.take(indices), self.max_len)


class TextFeed(NamedTuple):
    """Texts of one source."""

    name: str
    tokens: Tokens


def text_batch(feeds: Sequence[TextFeed], plan: Plan, part: Callable[[int], range], step: int) -> TextBatch:
    """This rank's batch of a step: a function of the step alone.

    Args:
        feeds: one for each stream of the plan.
        plan: the order of the texts.
        part: size of a global batch -> this rank's positions in it.
        step: from 1.
    """
    own = part(plan.size(step))
    draw = plan.draw(step, own)
    found, places = [], []
    for number in np.unique(draw.sources).tolist():
        chosen = np.flatnonzero(draw.sources == number)
        found.append(feeds[number].tokens.take(draw.rows[chosen].tolist()))
        places.append(torch.from_numpy(chosen) + own.start)
    # masks are drawn by the place in the global batch, so that the texts need not stand in its order
    return TextBatch(
        join(*(text for text, _ in found)), torch.cat([words for _, words in found]), torch.cat(places), plan.epoch(step)
    )


def word_chunk(batch: TextBatch, indices: Tensor, pad_id: int) -> WordChunk:
    """The texts at `indices`, padded to the longest of them."""
    padded = pad(batch.text, indices, pad_id)
    words = pad(Ragged(batch.words, batch.text.lengths), indices, -1)
    return WordChunk(padded.ids, padded.mask, words.ids, batch.rows[indices])
