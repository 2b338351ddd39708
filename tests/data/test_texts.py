"""Batches of masked auto-encoding: a function of the step and the part."""

import torch
from plans import single

from bgetrain.data.texts import TextFeed, Truncated, text_batch, word_chunk
from bgetrain.data.tokenize import ragged, tokenize_words, train_wordpiece
from bgetrain.types import TextBatch

TEXTS = [f"word{n} and word{n + 1} " * (1 + n % 3) for n in range(10)]


class Listed(list):
    def take(self, indices):
        return [self[index] for index in indices]


def test_a_batch_holds_the_plan_s_texts_their_words_and_their_places():
    tokenizer = train_wordpiece(TEXTS, 100, 32)
    feeds = [TextFeed("test", Truncated(Listed(TEXTS), tokenizer, 9))]
    for step in (1, 7, 2):
        numbers = single(10, 4, 3).draw(step, range(1, 4)).rows
        text, words = tokenize_words(tokenizer, [TEXTS[number] for number in numbers], 9)
        batch = text_batch(feeds, single(10, 4, 3), lambda size: range(1, size), step)
        assert torch.equal(batch.text.ids, text.ids)
        assert torch.equal(batch.words, words)
        assert int(batch.text.lengths.max()) <= 9
        assert batch.rows.tolist() == [1, 2, 3]  # of the global batch: what seeds the masks
        assert batch.epoch == (step - 1) * 4 / 10


def test_a_chunk_has_the_chosen_texts_padded_with_their_words_and_places():
    batch = TextBatch(ragged([[1, 9, 2], [1, 7, 7, 8, 2], [1, 2]]), torch.tensor([-1, 0, -1, -1, 0, 0, 1, -1, -1, -1]),
                      torch.tensor([40, 41, 42]), 0.0)  # fmt: skip
    chunk = word_chunk(batch, torch.tensor([1, 0]), 3)
    assert chunk.ids.tolist() == [[1, 7, 7, 8, 2], [1, 9, 2, 3, 3]]
    assert chunk.mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert chunk.words.tolist() == [[-1, 0, 0, 1, -1], [-1, 0, -1, -1, -1]]
    assert chunk.rows.tolist() == [41, 40]
    alone = word_chunk(batch, torch.tensor([2]), 3)
    assert (alone.ids.tolist(), alone.mask, alone.words.tolist()) == ([[1, 2]], None, [[-1, -1]])
