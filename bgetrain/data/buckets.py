"""Rows of similar length together, so that a batch of short texts may be larger than one of long ones."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bgetrain.data.groups import Feed
from bgetrain.data.tokenize import tokenize
from bgetrain.sources import Row, Rows

BLOCK = 4096  # rows measured at a time


class Subset:
    """Some rows of a source.

    Args:
        rows: all of them.
        numbers: int64 [n], those that are meant.
    """

    def __init__(self, rows: Rows, numbers: np.ndarray) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, indices: Sequence[int]) -> list[Row]:
        return self.rows.take(self.numbers[np.asarray(indices, np.int64)].tolist())

    def where(self, index: int) -> str:
        return self.rows.where(int(self.numbers[index]))


def longest_texts(feed: Feed, tokenizer: Any, part: range, advance: Callable[[int], None]) -> np.ndarray:
    """int32 [n], tokens of the longest text of each row of `part`, cut as in training.

    Args:
        feed: the rows, their limits and instruction.
        tokenizer: a fast tokenizer of transformers.
        part: the rows to measure.
        advance: told how many rows have been measured since it was last told.
    """
    found = [np.zeros(0, np.int32)]
    for start in range(part.start, part.stop, BLOCK):
        taken = feed.rows.take(range(start, min(start + BLOCK, part.stop)))
        prompts = [feed.query_instruction if row.prompt is None else row.prompt for row in taken]
        queries = [prompt + row.query for prompt, row in zip(prompts, taken, strict=True)]
        before = [prompt if feed.symmetric else "" for prompt in prompts]
        listed = zip(before, taken, strict=True)
        passages = [each + passage for each, row in listed for passage in (*row.positives, *row.negatives)]
        counts = np.array([len(row.positives) + len(row.negatives) for row in taken])
        longest = np.maximum.reduceat(
            tokenize(tokenizer, passages, feed.passage_max_len).lengths.numpy(), counts.cumsum() - counts
        )
        found.append(np.maximum(tokenize(tokenizer, queries, feed.query_max_len).lengths.numpy(), longest).astype(np.int32))
        advance(len(taken))
    return np.concatenate(found)


def split(lengths: np.ndarray, limits: Sequence[int], batch_of: Callable[[int], int]) -> list[tuple[int, np.ndarray]]:
    """Rows by their longest text.

    Args:
        lengths: int32 [N], tokens.
        limits: rising; a bucket holds lengths above the limit before, up to its own. The last also holds what is longer.
        batch_of: limit -> rows of a global batch. A bucket with fewer rows than that joins the next longer one, the last
            the one before it.

    Returns:
        (limit, int64 rows, rising) of each bucket that holds any.
    """
    numbers = np.minimum(np.searchsorted(np.asarray(limits), lengths, side="left"), len(limits) - 1)
    found: list[tuple[int, np.ndarray]] = []
    waiting = np.zeros(0, np.int64)
    for number, limit in enumerate(limits):
        waiting = np.sort(np.concatenate([waiting, np.flatnonzero(numbers == number)]))
        if len(waiting) >= batch_of(limit):
            found.append((limit, waiting))
            waiting = np.zeros(0, np.int64)
    if len(waiting):
        before = found.pop()[1] if found else np.zeros(0, np.int64)
        found.append((limits[-1], np.sort(np.concatenate([before, waiting]))))
    return found
