"""Token ids end to end, chunks of them, and a vocabulary trained from texts."""

import random

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bgetrain.data.tokenize import SPECIALS, chunk, cut, join, pad, ragged, tokenize, tokenize_words, train_wordpiece

TEXTS = ["Ünder the quick brown foxes", "", "dogs, dogs; unbelievably long-winded dogs!", "the [SEP] token", "\U0001f600 smile"]


def corpus(seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = [
        "quick",
        "brown",
        "fox",
        "foxes",
        "dog",
        "dogs",
        "winded",
        "long",
        "believe",
        "unbelievably",
        "the",
        "under",
        "token",
    ]
    return [" ".join(draw.choices(words, k=8)) for _ in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(corpus(), 80, 64)


def unragged(text) -> list[list[int]]:
    return [each.tolist() for each in text.ids.split(text.lengths.tolist())]


@pytest.mark.parametrize("max_len", [3, 7, 64])
@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_and_words_are_those_of_the_tokenizer_itself(tokenizer, max_len, side):
    tokenizer.truncation_side = side
    expected = tokenizer(TEXTS, truncation=True, max_length=max_len)
    assert unragged(tokenize(tokenizer, TEXTS, max_len)) == expected["input_ids"]
    text, words = tokenize_words(tokenizer, TEXTS, max_len)
    assert unragged(text) == expected["input_ids"]
    ours = [each.tolist() for each in words.split(text.lengths.tolist())]
    assert ours == [[-1 if word is None else word for word in expected.word_ids(n)] for n in range(len(TEXTS))]
    assert text.ids.dtype == text.lengths.dtype == words.dtype == torch.int64
    tokenizer.truncation_side = "right"


def test_a_tokenizer_that_was_set_to_pad_does_not(tokenizer):
    tokenizer(TEXTS, padding="max_length", max_length=64)
    assert tokenize(tokenizer, TEXTS, 64).lengths.tolist() == [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]


def test_no_texts_are_no_tokens(tokenizer):
    assert tokenize(tokenizer, [], 8).lengths.tolist() == tokenize(tokenizer, [], 8).ids.tolist() == []


def test_join_lays_texts_one_after_the_other():
    assert unragged(join(ragged([[1, 2], [3]]), ragged([[4]]))) == [[1, 2], [3], [4]]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("budget", [1, 16, 100, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_cut_takes_every_text_once_in_order_of_length_within_the_budget(budget, seed, padded):
    draw = random.Random(seed)
    lengths = torch.tensor([draw.randint(2, 40) for _ in range(200)])
    groups = cut(lengths, budget, padded=padded)
    order = torch.cat(groups)
    assert sorted(order.tolist()) == list(range(200))
    assert (lengths[order].diff() >= 0).all()

    def tokens(group: torch.Tensor) -> int:
        return len(group) * int(lengths[group].max()) if padded else int(lengths[group].sum())

    for group, following in zip(groups, [*groups[1:], None], strict=True):
        assert tokens(group) <= budget or len(group) == 1
        if following is not None:  # no group could have taken one more, unless much of it were padding
            more = torch.cat([group, following[:1]])
            padding = 1 - int(lengths[more].sum()) / tokens(more) if padded else 0
            assert tokens(more) > budget or (padding > 1 / 16 and int(lengths[group].sum()) >= budget / 8)


def test_two_lengths_apart_are_not_padded_together():
    lengths = torch.tensor([10] * 40 + [200] * 4)
    assert [len(group) for group in cut(lengths, 2000, padded=True)] == [40, 4]
    assert [len(group) for group in cut(lengths, 10_000, padded=True)] == [44]  # too few to go alone
    assert [len(group) for group in cut(lengths, 2000, padded=False)] == [44]


def test_packed_chunks_are_the_texts_end_to_end():
    text = ragged([[1, 2, 3], [4], [5, 6]])
    ids, lengths = chunk(text, torch.tensor([2, 0, 1]), None)
    assert ids.tolist() == [5, 6, 1, 2, 3, 4]
    assert lengths.tolist() == [2, 3, 1]
    assert chunk(text, torch.tensor([1]), 9).ids.tolist() == [[4]]


def test_a_text_longer_than_the_budget_stands_alone():
    assert [group.tolist() for group in cut(torch.tensor([50, 4, 4, 60]), 8, padded=True)] == [[1, 2], [0], [3]]


def test_nothing_is_cut_into_nothing():
    assert cut(torch.empty(0, dtype=torch.int64), 8, padded=True) == []


def test_pad_fills_to_the_longest_and_marks_what_is_real():
    chunk = pad(ragged([[1, 2, 3], [4], [5, 6]]), torch.tensor([2, 0]), pad_id=9)
    assert chunk.ids.tolist() == [[5, 6, 9], [1, 2, 3]]
    assert chunk.mask.tolist() == [[True, True, False], [True, True, True]]
    assert (chunk.ids.dtype, chunk.mask.dtype) == (torch.int64, torch.bool)


def test_texts_of_one_length_need_no_mask():
    chunk = pad(ragged([[1, 2], [9, 9, 9], [3, 4]]), torch.tensor([0, 2]), pad_id=0)
    assert chunk.mask is None
    assert chunk.ids.tolist() == [[1, 2], [3, 4]]


def test_cut_and_pad_give_every_text_back(tokenizer):
    texts = corpus(1) + TEXTS
    text = tokenize(tokenizer, texts, 32)
    back: dict[int, list[int]] = {}
    for group in cut(text.lengths, 128, padded=True):
        ids, mask = pad(text, group, tokenizer.pad_token_id)
        for number, row, real in zip(
            group.tolist(), ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask, strict=True
        ):
            back[number] = row[real].tolist()
            assert (row[~real] == tokenizer.pad_token_id).all()
    assert [back[number] for number in range(len(texts))] == unragged(text)


def test_a_trained_vocabulary_is_bert_s_kind(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.convert_ids_to_tokens(range(5)) == SPECIALS
    specials = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token)
    assert list(specials) == SPECIALS
    assert (len(tokenizer), tokenizer.model_max_length) == (80, 64)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Fóx, DOGS §")["input_ids"])
    assert tokens == ["[CLS]", "fox", "[UNK]", "dogs", "[UNK]", "[SEP]"]  # lower case, no accents, unseen signs unknown
    assert "##" in "".join(tokenizer.get_vocab())


def test_training_is_a_function_of_the_texts():
    same = [train_wordpiece(texts, 60, 64).get_vocab() for texts in (corpus(), iter(corpus()), corpus(), corpus())]
    assert all(each == same[0] for each in same)
    assert train_wordpiece(corpus()[:1], 60, 64).get_vocab() != same[0]


def test_no_word_of_the_vocabulary_is_taken_for_a_special_token():
    trained = train_wordpiece(["xyz xyz xz $ # 中文 Ünder"], 80, 64)
    assert set(trained.get_added_vocab()) == set(SPECIALS)
    assert trained.tokenize("##z") == ["#", "#", "z"] == trained.tokenize("# # z")
    assert {"##y", "##z"} < set(trained.get_vocab())
    assert not {"##$", "##中", "##文"} & set(trained.get_vocab())  # words of their own, never inside another


def test_a_saved_vocabulary_comes_back_equal(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (again.pad_token_id, again.mask_token_id, again.model_max_length) == (0, 4, 64)


def test_no_texts_make_no_vocabulary():
    with pytest.raises(ValueError, match=r"^a vocabulary cannot be trained: the data has no training texts$"):
        train_wordpiece([], 80, 64)
