"""Token ids end to end, chunks of them, and a vocabulary trained from texts."""

import json
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bgetrain.data.tokenize import SPECIALS, chunk, cut, join, numbered, pad, ragged, tokenize, tokenize_words, train_wordpiece

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


def literal_words(given: list[int | None]) -> list[int]:
    """Words counted from 0, those of more than 8 tokens token by token; -1 on special tokens."""
    words, count, before = [], -1, None
    for word in given:
        count += word is not None and (word != before or given.count(word) > 8)
        words.append(-1 if word is None else count)
        before = word
    return words


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
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}  # one text has one of them written in it
    given = [
        [None if each in special else word for each, word in zip(ids, expected.word_ids(number), strict=True)]
        for number, ids in enumerate(expected["input_ids"])
    ]
    assert ours == [literal_words(each) for each in given]
    assert text.ids.dtype == text.lengths.dtype == words.dtype == torch.int64
    tokenizer.truncation_side = "right"


ENGLISH = "the quick  brown foxes, unbelievably\nwinded dogs' tokens"
CLAUSE = "敏捷的棕色狐狸跳过了那条懒惰的狗"
FOXES = [*(ENGLISH[:cut] for cut in (3, 20, 60)), CLAUSE, f"the {CLAUSE} fox", "", "donaudampfschifffahrtsgesellschaft dog"]


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A small vocabulary of another kind than WordPiece, with <s> and </s> around each text."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    common = dict(vocab_size=330, special_tokens=special, show_progress=False)
    if kind == "byte-level BPE":
        made, trainer = (
            Tokenizer(models.BPE()),
            trainers.BpeTrainer(**common, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
        )
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        made, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(**common, unk_token="<unk>")
        made.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "Metaspace")
    made.train_from_iterator(corpus() + list(CLAUSE), trainer)
    if kind == "Metaspace that never splits":  # trained on whole texts it knows phrases, which shall not hide the words
        vocab = json.loads(made.to_str())["model"]["vocab"]
        made.model = models.Unigram([(piece, score) for piece, score in vocab if len(piece) < 4 or piece in special], unk_id=3)
    ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", mask_token="<mask>", model_max_length=64)


@pytest.mark.parametrize("kind", ["byte-level BPE", "Metaspace", "Metaspace that never splits"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_words_of_any_fast_tokenizer(kind, side):
    other = trained(kind)
    other.truncation_side = side
    for max_len in (5, 12, 64):
        expected = other(FOXES, truncation=True, max_length=max_len)
        text, words = tokenize_words(other, FOXES, max_len)
        assert unragged(text) == expected["input_ids"]
        ours = [each.tolist() for each in words.split(text.lengths.tolist())]
        assert ours == [literal_words(expected.word_ids(number)) for number in range(len(FOXES))]
        for each in ours:
            assert (each[0], each[-1]) == (-1, -1)
            inner = each[1:-1]
            assert all(after - before in (0, 1) for before, after in zip([-1, *inner], inner, strict=False))


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE", "Metaspace"])
def test_pieces_of_an_english_word_stay_together_and_those_of_a_chinese_clause_do_not(tokenizer, kind):
    text, words = tokenize_words(tokenizer if kind == "WordPiece" else trained(kind), ["fox believeunder", CLAUSE], 64)
    english, chinese = (each.tolist()[1:-1] for each in words.split(text.lengths.tolist()))
    assert set(english) == {0, 1}
    assert 2 <= english.count(1) <= 8
    assert chinese == list(range(len(chinese)))
    assert len(chinese) >= len(CLAUSE)


def test_where_all_of_a_text_is_one_word_each_token_is_a_word():
    other = trained("Metaspace that never splits")
    given = other("the quick brown fox").word_ids()[1:-1]
    assert (set(given), len(given) > 8) == ({0}, True)
    assert tokenize_words(other, ["the quick brown fox"], 64)[1].tolist() == [-1, *range(len(given)), -1]


def test_a_word_of_eight_tokens_stays_together_and_one_of_nine_does_not():
    def given(*sizes: int) -> np.ndarray:
        return np.array([np.nan, *np.repeat(np.arange(len(sizes)) + 5.0, sizes), np.nan])

    texts = [given(2, 8, 1), given(1, 9, 2), given(), given(9)]
    words = numbered(np.concatenate(texts), np.array([len(text) for text in texts]))
    found = [each.tolist()[1:-1] for each in np.split(words, np.cumsum([len(text) for text in texts])[:-1])]
    assert found == [[0, 0, *[1] * 8, 2], [0, *range(1, 10), 10, 10], [], list(range(9))]


def test_the_same_word_at_the_end_of_one_text_and_the_beginning_of_the_next_is_two():
    assert numbered(np.array([0.0, 1, 1, 1, 1, 2]), np.array([3, 0, 3])).tolist() == [0, 1, 1, 0, 0, 1]
    assert numbered(np.zeros(12), np.array([6, 6])).tolist() == [0] * 12, "two words of six tokens, not one of twelve"


def test_words_are_the_same_in_blocks_of_any_size(tokenizer, monkeypatch):
    texts = corpus()[:20] + FOXES
    whole = tokenize_words(tokenizer, texts, 12)
    monkeypatch.setattr("bgetrain.data.tokenize.BLOCK", 3)
    parts = tokenize_words(tokenizer, texts, 12)
    assert torch.equal(whole[1], parts[1])
    assert unragged(whole[0]) == unragged(parts[0])


def test_a_tokenizer_that_was_set_to_pad_does_not(tokenizer):
    tokenizer(TEXTS, padding="max_length", max_length=64)
    assert tokenize(tokenizer, TEXTS, 64).lengths.tolist() == [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]


def test_no_texts_are_no_tokens(tokenizer):
    assert tokenize(tokenizer, [], 8).lengths.tolist() == tokenize(tokenizer, [], 8).ids.tolist() == []
    assert [each.numel() for each in (*tokenize_words(tokenizer, [], 8)[0], tokenize_words(tokenizer, [], 8)[1])] == [0, 0, 0]


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
