"""Batches of masked auto-encoding: a function of the step and the part."""

import pytest
import torch
from documents import Listed
from plans import single

from bgetrain.data.plan import Plan, Stream
from bgetrain.data.texts import TextFeed, Truncated, text_batch, word_chunk
from bgetrain.data.tokenize import tokenize_words, train_wordpiece

TEXTS = Listed(f"word{n} and word{n + 1} " * (1 + n % 3) for n in range(10))


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(TEXTS, 100, 32)


def test_a_batch_holds_the_plan_s_texts_their_words_and_their_places(tokenizer):
    feeds = [TextFeed("test", Truncated(TEXTS, tokenizer, 9))]
    for step in (1, 7, 2):
        numbers = single(10, 4, 3).draw(step, range(1, 4)).rows
        text, words = tokenize_words(tokenizer, [TEXTS[number] for number in numbers], 9)
        batch = text_batch(feeds, single(10, 4, 3), lambda size: range(1, size), step)
        assert torch.equal(batch.text.ids, text.ids)
        assert torch.equal(batch.words, words)
        assert int(batch.text.lengths.max()) <= 9
        assert batch.rows.tolist() == [1, 2, 3]  # of the global batch: what seeds the masks
        assert batch.epoch == (step - 1) * 4 / 10


def test_a_batch_of_several_sources_keeps_the_place_of_each_text(tokenizer):
    others = Listed(f"other{n}" for n in range(8))
    feeds = [TextFeed("one", Truncated(TEXTS, tokenizer, 30)), TextFeed("two", Truncated(others, tokenizer, 30))]
    plan = Plan([Stream(10, 6, 0.5), Stream(8, 6, 0.5)], 3, mixed=True)
    for step in (1, 2, 3):
        own = range(1, plan.size(step))
        draw = plan.draw(step, own)
        batch = text_batch(feeds, plan, lambda size: range(1, size), step)
        texts = batch.text.ids.split(batch.text.lengths.tolist())
        found = {int(row): ids.tolist() for row, ids in zip(batch.rows, texts, strict=True)}
        for place, source, row in zip(own, draw.sources.tolist(), draw.rows.tolist(), strict=True):
            assert found[place] == tokenizer((TEXTS, others)[source][row])["input_ids"]
        assert len(found) == len(own)


def test_a_chunk_is_padded_with_the_words_of_its_tokens(tokenizer):
    batch = text_batch([TextFeed("test", Truncated(TEXTS, tokenizer, 30))], single(10, 10, 3), range, 1)
    chosen = torch.tensor([4, 0, 7])
    chunk = word_chunk(batch, chosen, tokenizer.pad_token_id)
    ends = batch.text.lengths.cumsum(0)
    for at, number in enumerate(chosen.tolist()):
        length, end = int(batch.text.lengths[number]), int(ends[number])
        assert chunk.ids[at, :length].tolist() == batch.text.ids[end - length : end].tolist()
        assert chunk.words[at, :length].tolist() == batch.words[end - length : end].tolist()
        assert (chunk.ids[at, length:] == tokenizer.pad_token_id).all()
        assert (chunk.words[at, length:] == -1).all()
        assert chunk.mask[at].tolist() == [place < length for place in range(chunk.ids.shape[1])]
    assert torch.equal(chunk.rows, batch.rows[chosen])
