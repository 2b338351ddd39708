"""Rows by length: measured as training cuts them, split by limits, each row in one bucket."""

import numpy as np
import pytest

from bgetrain.data.buckets import Subset, longest_texts, split
from bgetrain.data.groups import Feed
from bgetrain.data.tokenize import train_wordpiece
from bgetrain.sources import Row


class Listed:
    """Rows in memory."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def take(self, indices):
        return [self.rows[index] for index in indices]

    def where(self, index):
        return f"rows.jsonl:{index + 1}"


def test_the_longest_text_of_a_row_counts_with_instruction_and_limits():
    tokenizer = train_wordpiece(["one two three four five six seven eight nine ten find"], 100, 32)
    rows = [
        Row("one", ["one two"], ["one two three", "one"], None),  # 3 words and two special tokens
        Row("one two three four", ["one"], [], None),  # with `find` before it
        Row("one", ["one"], [], "find find "),
        Row("one", ["one two three four five six seven eight nine ten"], [], None),
    ]
    feed = Feed("test", Listed(rows), 32, 9, "find ", "random", 2, False, False, False)
    seen: list[int] = []
    assert longest_texts(feed, tokenizer, range(4), seen.append).tolist() == [5, 7, 5, 9]
    assert longest_texts(feed, tokenizer, range(1, 3), seen.append).tolist() == [7, 5]
    assert longest_texts(feed, tokenizer, range(0), seen.append).tolist() == []
    assert seen == [4, 2]


@pytest.mark.parametrize("seed", range(5))
def test_each_row_is_in_the_bucket_of_its_length(seed):
    lengths = np.random.default_rng(seed).integers(1, 40, 200).astype(np.int32)
    found = split(lengths, [8, 16, 32], lambda limit: 5)
    assert [limit for limit, _ in found] == [8, 16, 32]
    for (limit, rows), least in zip(found, (0, 8, 16), strict=True):
        expected = [row for row in range(200) if least < lengths[row] <= (limit if limit < 32 else 99)]
        assert rows.tolist() == expected


def test_a_bucket_that_cannot_fill_a_batch_joins_the_next_longer_one():
    lengths = np.array([1, 1, 10, 10, 10, 30], np.int32)
    assert [(limit, rows.tolist()) for limit, rows in split(lengths, [8, 16, 32], {8: 3, 16: 4, 32: 1}.get)] == [
        (16, [0, 1, 2, 3, 4]),
        (32, [5]),
    ]
    assert [(limit, rows.tolist()) for limit, rows in split(lengths, [8, 16, 32], {8: 2, 16: 3, 32: 2}.get)] == [
        (8, [0, 1]),
        (32, [2, 3, 4, 5]),
    ]
    assert [(limit, len(rows)) for limit, rows in split(lengths, [8], lambda _: 100)] == [(8, 6)]


def test_a_subset_takes_and_names_its_own_rows():
    rows = Listed([Row(f"q{n}", ["p"], [], None) for n in range(9)])
    some = Subset(rows, np.array([2, 5, 7]))
    assert len(some) == 3
    assert [row.query for row in some.take([2, 0, 0])] == ["q7", "q2", "q2"]
    assert some.where(1) == "rows.jsonl:6"
