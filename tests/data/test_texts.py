"""Batches of masked auto-encoding: a function of the step and the part."""

import torch
from plans import single

from bgetrain.data.texts import TextFeed, text_batch
from bgetrain.data.tokenize import tokenize_words, train_wordpiece

TEXTS = [f"word{n} and word{n + 1} " * (1 + n % 3) for n in range(10)]


class Listed(list):
    def take(self, indices):
        return [self[index] for index in indices]


def test_a_batch_holds_the_plan_s_texts_their_words_and_their_places():
    tokenizer = train_wordpiece(TEXTS, 100, 32)
    feeds = [TextFeed("test", Listed(TEXTS), 9)]
    for step in (1, 7, 2):
        numbers = single(10, 4, 3).draw(step, range(1, 4)).rows
        text, words = tokenize_words(tokenizer, [TEXTS[number] for number in numbers], 9)
        batch = text_batch(feeds, tokenizer, single(10, 4, 3), lambda size: range(1, size), step)
        assert torch.equal(batch.text.ids, text.ids)
        assert torch.equal(batch.words, words)
        assert int(batch.text.lengths.max()) <= 9
        assert batch.rows.tolist() == [1, 2, 3]  # of the global batch: what seeds the masks
        assert batch.epoch == (step - 1) * 4 / 10
