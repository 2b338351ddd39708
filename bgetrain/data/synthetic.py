"""Rows made up on the spot, a function of their number alone."""

from collections.abc import Sequence

import numpy as np

from bgetrain.sources import Row, Source
from bgetrain.types import MissingNegatives, PositiveInt

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
WORDS, LONGEST = 2000, 120  # different words; words of a passage


def synthetic(
    *,
    num_rows: PositiveInt,
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    missing_negatives: MissingNegatives,
    split: str,
) -> Source:
    """Makes up queries and passages: a query is four words of its passage.

    Args:
        num_rows: rows, and texts for pre-training.
        query_max_len: tokens of a query, special tokens included.
        passage_max_len: the same for passages.
        query_instruction: put before every query.
        missing_negatives: what to do where group_size > 1, since rows have no negatives.
        split: a name for messages.
    """
    return Source(
        name="data=synthetic",
        texts=lambda: Passages(num_rows),
        rows=lambda: Pairs(num_rows),
        retrieval=None,
        files=[],
        split=split,
        query_max_len=query_max_len,
        passage_max_len=passage_max_len,
        query_instruction=query_instruction,
        missing_negatives=missing_negatives,
    )


def passage(number: int) -> str:
    """8 to `LONGEST` words of two syllables."""
    draw = np.random.default_rng(number)
    words = draw.integers(0, WORDS, int(draw.integers(8, LONGEST + 1))).tolist()
    return " ".join(SYLLABLES[word % len(SYLLABLES)] + SYLLABLES[word // len(SYLLABLES)] for word in words)


class Passages:
    """The texts."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def take(self, indices: Sequence[int]) -> list[str]:
        return [passage(int(index)) for index in indices]


class Pairs:
    """The rows."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def take(self, indices: Sequence[int]) -> list[Row]:
        texts = [passage(int(index)) for index in indices]
        return [Row(" ".join(text.split()[1:8:2]), [text], [], None) for text in texts]

    def where(self, index: int) -> str:
        return f"row {index} of data=synthetic"
