"""Texts to batches for masked auto-encoding."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from bgetrain.data.plan import Plan
from bgetrain.data.tokenize import tokenize_words
from bgetrain.sources import Texts
from bgetrain.types import Ragged, TextBatch


class TextFeed(NamedTuple):
    """Texts of one source, cut at `max_len` tokens."""

    name: str
    texts: Texts
    max_len: int


def text_batch(feeds: Sequence[TextFeed], tokenizer: Any, plan: Plan, part: Callable[[int], range], step: int) -> TextBatch:
    """This rank's batch of a step: a function of the step alone.

    Args:
        feeds: one for each stream of the plan.
        tokenizer: a fast tokenizer of transformers.
        plan: the order of the texts.
        part: size of a global batch -> this rank's positions in it.
        step: from 1.
    """
    own = part(plan.size(step))
    draw = plan.draw(step, own)
    found, places = [], []
    for number in np.unique(draw.sources).tolist():
        chosen = np.flatnonzero(draw.sources == number)
        texts = feeds[number].texts.take(draw.rows[chosen].tolist())
        found.append(tokenize_words(tokenizer, texts, feeds[number].max_len))
        places.append(torch.from_numpy(chosen) + own.start)
    ids, lengths = (torch.cat([getattr(text, name) for text, _ in found]) for name in ("ids", "lengths"))
    # masks are drawn by the place in the global batch, so that the texts need not stand in its order
    return TextBatch(Ragged(ids, lengths), torch.cat([words for _, words in found]), torch.cat(places), plan.epoch(step))
