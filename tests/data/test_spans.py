"""Documents in spans: nothing is lost, cuts stand where they may, and the folder is whole or not there."""

import pickle
from collections import Counter
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from documents import Deadly, Listed, byte_level, document, metaspace

from bgetrain.data import spans as module
from bgetrain.data.spans import IDS, META, OFFSETS, spans
from bgetrain.data.texts import Truncated
from bgetrain.data.tokenize import tokenize_words, train_wordpiece

TEXTS = Listed(document(seed, 1 + seed % 17) for seed in range(120))


@pytest.fixture(scope="module")
def tokenizers():
    return {
        "wordpiece": train_wordpiece(TEXTS, 150, 512),
        "trimmed": byte_level(TEXTS, 330, trim=True),
        "byte level": byte_level(TEXTS, 420, trim=False),
        "metaspace": metaspace(TEXTS, 120),
    }


NAMES = ["wordpiece", "trimmed", "byte level", "metaspace"]


def made(texts, tokenizer, max_len, folder, *, cut="sentences", across=False, num_workers=0, advance=lambda n: None):
    return spans(texts, tokenizer, max_len, folder, cut=cut, across=across, num_workers=num_workers, advance=advance)


def taken(found) -> list[tuple[list[int], list[int]]]:
    """Ids and words of every span."""
    text, words = found.take(range(len(found)))
    sizes = text.lengths.tolist()
    return [(ids.tolist(), own.tolist()) for ids, own in zip(text.ids.split(sizes), words.split(sizes), strict=True)]


def plain(tokenizer, ids) -> str:
    """A span in words."""
    return " ".join(tokenizer.convert_ids_to_tokens(ids)).replace(" ##", "").replace(" .", ".")


def whole(tokenizer, text) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# The reference: one document at a time, one candidate at a time, by the characters themselves.


def is_end(text: str, place: int) -> bool:
    """Whether a sentence has ended at a place between two characters, and its closing signs and line breaks as well."""
    breaks = "\n\r\u2028\u2029"
    at = place
    while at and text[at - 1] in breaks:
        at -= 1
    if place < len(text) and text[place] in breaks:
        return False
    if at < place:
        return True
    while at and text[at - 1] in "\"'”’»)]}」』）】》〉":
        at -= 1
    if at and text[at - 1] in "。！？；．｡":
        return not (place < len(text) and text[place] in "\"'”’»)]}」』）】》〉。！？；．｡…")
    western = text[at:place].strip("\"'”’»)]}") == ""
    follows = place < len(text) and (text[place].isspace() or "\u4e00" <= text[place] <= "\u9fff")
    return bool(at and text[at - 1] in ".!?…" and western and follows)


class Token(NamedTuple):
    id: int
    begins: bool  # a word
    word: bool  # a cut before it parts no word
    sentence: bool  # a sentence or document ended before it
    separator: bool


def tokens_of(tokenizer, text: str) -> list[Token]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets, numbers = encoded["offset_mapping"], encoded.word_ids()
    ends = [is_end(text, place) for place in range(len(text) + 1)]
    found, sizes = [], Counter(numbers)
    for n, number in enumerate(numbers):
        begins = n == 0 or number != numbers[n - 1] or sizes[number] > 8
        word = begins and n > 0 and offsets[n][0] >= offsets[n - 1][1]
        sentence = n > 0 and any(ends[offsets[n - 1][0] + 1 : offsets[n][0] + 1])
        found.append(Token(encoded["input_ids"][n], begins, word, sentence, False))
    return found


def reference(tokens: list[Token], room: int, cut: str) -> list[tuple[list[int], list[int]]]:
    """Ids and words of the spans of one document, or of several with separators between; without special tokens."""
    found, start = [], 0
    while start < len(tokens):
        if tokens[start].separator:
            start += 1
        end = limit = start + room
        if limit < len(tokens):
            places = [n for n in range(start + 1, limit + 1) if not tokens[n - 1].separator]
            sentence = [n for n in places if tokens[n].sentence]
            word = [n for n in places if tokens[n].word]
            if cut == "sentences" and sentence and sentence[-1] - start >= room / 2:
                end = sentence[-1]
            elif word and (cut == "sentences" or limit - word[-1] <= 8):
                end = word[-1]
        words, word = [], -1
        for n, token in enumerate(tokens[start:end]):
            word += not token.separator and (token.begins or n == 0)
            words.append(-1 if token.separator else word)
        found.append(([token.id for token in tokens[start:end]], words))
        start = end
    return found


@pytest.mark.parametrize("name", NAMES)
def test_spans_are_those_of_the_slow_reference(tokenizers, name, tmp_path):
    tokenizer = tokenizers[name]
    specials = tokenizer.num_special_tokens_to_add()
    ends = tokenizer("")["input_ids"]
    before, after = (ends[:1], ends[1:]) if specials == 2 else ([], ends)
    documents = [tokens for text in TEXTS if (tokens := tokens_of(tokenizer, text))]
    separator = Token(ends[-1], False, True, True, True)
    stream = [token for tokens in documents for token in (separator, *tokens)][1:]
    for cut, across, max_len in product(["sentences", "tokens"], [False, True], [specials + 1, 4, 17, 64]):
        room = max_len - specials
        listed = [stream] if across else documents
        expected = [
            (before + ids + after, [-1] * len(before) + words + [-1] * len(after))
            for tokens in listed
            for ids, words in reference(tokens, room, cut)
        ]
        folder = tmp_path / f"{cut} {across} {max_len}"
        assert taken(made(TEXTS, tokenizer, max_len, folder, cut=cut, across=across)) == expected


@pytest.mark.parametrize("cut", ["sentences", "tokens"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_and_no_span_is_too_long(tokenizers, name, cut, tmp_path):
    tokenizer = tokenizers[name]
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    expected = [token for text in TEXTS for token in whole(tokenizer, text)]
    for across in (False, True):
        found = taken(made(TEXTS, tokenizer, 40, tmp_path / str(across), cut=cut, across=across))
        tokens = [token for ids, words in found for token, word in zip(ids, words, strict=True) if word >= 0]
        assert tokens == expected
        assert max(len(ids) for ids, _ in found) <= 40
        assert min(max(words) for _, words in found) >= 0  # none is empty
        inner = [
            token
            for ids, words in found
            for place, token in enumerate(ids)
            if words[place] < 0 and max(words[:place], default=-1) >= 0 and max(words[place:]) >= 0
        ]
        assert inner == [separator] * len(inner)
        assert bool(inner) == across


def test_across_documents_the_room_is_filled_with_a_separator_between(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    texts = Listed(["the fox.", "", "a dog jumps. over rivers.", "the end."])
    apart = [plain(tokenizer, ids) for ids, _ in taken(made(texts, tokenizer, 50, tmp_path / "apart"))]
    assert apart == ["[CLS] the fox. [SEP]", "[CLS] a dog jumps. over rivers. [SEP]", "[CLS] the end. [SEP]"]
    # room for the first document, a separator and the second's first sentence
    max_len = sum(len(whole(tokenizer, text)) for text in ("the fox.", "a dog jumps.")) + 3
    for more in (0, 1):
        found = taken(made(texts, tokenizer, max_len + more, tmp_path / str(more), across=True))
        assert plain(tokenizer, found[0][0]) == "[CLS] the fox. [SEP] a dog jumps. [SEP]"
    # no room behind the separator: the document's end is the span's
    for less in (len(whole(tokenizer, "a dog jumps.")), len(whole(tokenizer, "a dog jumps.")) + 1):
        found = taken(made(texts, tokenizer, max_len - less, tmp_path / f"-{less}", across=True))
        assert plain(tokenizer, found[0][0]) == "[CLS] the fox. [SEP]"
        assert plain(tokenizer, found[1][0]).startswith("[CLS] a")


def test_spans_end_with_sentences_and_hold_as_many_as_fit(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    sentences = ["the fox jumps.", "seven wizards brew.", "a dog over the lazy dogs.", "near rivers.", "the fox over the dogs."]
    sizes = [len(whole(tokenizer, each)) for each in sentences]
    max_len = sizes[0] + sizes[1] + 2 + 1  # specials, and one token of the third
    found = made(Listed([" ".join(sentences)]), tokenizer, max_len, tmp_path / "spans")
    told = [plain(tokenizer, ids).removeprefix("[CLS] ").removesuffix(" [SEP]") for ids, _ in taken(found)]
    assert told[0] == "the fox jumps. seven wizards brew."
    assert " ".join(told) == " ".join(sentences)
    assert all(each.endswith(".") for each in told)


def test_chinese_is_cut_at_its_sentences_and_never_within_a_character(tokenizers, tmp_path):
    texts = Listed(["我们今天去公园看花。他说天气很好！大家都高兴。" * 4, "我们今天去公园看花他说天气很好大家都高兴" * 5])
    for name in ("trimmed", "byte level", "wordpiece"):
        tokenizer = tokenizers[name]
        found = taken(made(texts, tokenizer, 75, tmp_path / name))
        told = [tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids, _ in found]
        assert "".join(told) == "".join(texts)  # a character that is cut would be decoded as two unknown ones
        first = [each for each in told if "。" in each or "！" in each]
        assert len(first) > 1
        assert {each[-1] for each in first} <= {"。", "！"}


def test_words_are_parted_where_one_alone_does_not_fit(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    text = "the quick brown fox jumps over lazy dogs " * 9 + "x" + "y1z" * 30
    for cut in ("sentences", "tokens"):
        found = taken(made(Listed([text]), tokenizer, 12, tmp_path / cut, cut=cut))
        pieces = [tokenizer.convert_ids_to_tokens(ids) for ids, _ in found]
        assert any(each[1].startswith("##") for each in pieces)  # only the long one, whose tokens are y, 1, z
        assert not any(each[1].startswith("##") and each[1].strip("#")[0] not in "yz1" for each in pieces)


def test_spans_are_the_same_for_any_number_of_workers(tokenizers, tmp_path):
    for num_workers in (0, 1, 2, 3):
        counts: list[int] = []
        folder = tmp_path / str(num_workers)
        made(TEXTS, tokenizers["byte level"], 30, folder, across=True, num_workers=num_workers, advance=counts.append)
        assert sum(counts) == len(TEXTS)
    for name in (IDS, OFFSETS):
        assert len({(tmp_path / str(number) / name).read_bytes() for number in range(4)}) == 1


def test_spans_and_facts_do_not_depend_on_where_the_stream_breaks(tokenizers, tmp_path, monkeypatch):
    for across in (False, True):
        folders = []
        for joined in (1 << 22, 7, 50):  # tokens: a document and a span go over many breaks
            monkeypatch.setattr(module, "JOINED", joined)
            folders.append(tmp_path / f"{across} {joined}")
            made(TEXTS, tokenizers["byte level"], 30, folders[-1], across=across)
        for name in (IDS, OFFSETS, META):
            assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_a_killed_preparation_leaves_no_spans_and_the_next_goes_on_where_it_was(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    folder = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="a worker ended with status -9"):
        made(Deadly(TEXTS), tokenizer, 30, folder, num_workers=2)
    assert not folder.exists()
    asked: list[int] = []

    class Watched(Listed):
        def take(self, indices):
            asked.extend(indices)
            return super().take(indices)

    counts: list[int] = []
    made(Watched(TEXTS), tokenizer, 30, folder, advance=counts.append)
    assert 90 in asked
    assert len(asked) <= len(TEXTS) - 45  # of the even ones, those before 90 were there
    assert sum(counts) == len(TEXTS)
    made(TEXTS, tokenizer, 30, tmp_path / "whole")
    for name in (IDS, OFFSETS):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["killed", "whole"]
    made(Deadly(TEXTS), tokenizer, 30, folder)  # it is there: no text is read


def test_a_preparation_that_ends_while_it_cuts_leaves_no_spans(tokenizers, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(module.shutil, "rmtree", full)
    monkeypatch.setattr(module, "spans_of", full)
    with pytest.raises(OSError, match="no space"):
        made(TEXTS, tokenizers["wordpiece"], 30, tmp_path / "spans")
    assert not (tmp_path / "spans").exists()
    monkeypatch.undo()
    assert len(made(TEXTS, tokenizers["wordpiece"], 30, tmp_path / "spans"))


def test_spans_are_taken_in_any_order_by_copies_in_other_processes(tokenizers, tmp_path):
    found = made(TEXTS, tokenizers["trimmed"], 30, tmp_path / "spans")
    all_of_them = taken(found)
    copy = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 2000  # the maps are opened again
    for chosen in ([5], [9, 2, 2, 7], list(range(len(found)))[::-1]):
        for each in (found, copy):
            text, words = each.take(chosen)
            assert text.ids.tolist() == [token for number in chosen for token in all_of_them[number][0]]
            assert words.tolist() == [word for number in chosen for word in all_of_them[number][1]]
            assert text.ids.dtype == text.lengths.dtype == words.dtype == torch.int64
    for wrong in (-1, len(found)):
        with pytest.raises(IndexError, match=f"span {wrong} of {len(found)}"):
            found.take([0, wrong])


def test_facts_say_what_truncation_would_have_lost(tokenizers, tmp_path):
    lengths = np.array([len(whole(tokenizers["wordpiece"], text)) for text in TEXTS])
    found = made(TEXTS, tokenizers["wordpiece"], 30, tmp_path / "spans")
    lost = np.maximum(lengths - 28, 0).sum() / lengths.sum()
    assert f"{lengths.sum():,} tokens, in {len(found):,} spans of at most 30" in found.facts["documents"]
    long = found.facts["documents that exceed one span"]
    assert long == f"{(lengths > 28).sum():,}; truncation would lose {lost:.1%} of all tokens"
    assert found.facts["documents without a token"] == f"{(lengths == 0).sum():,}, left out"


def test_truncate_prepares_nothing(tokenizers, tmp_path):
    found = made(TEXTS, tokenizers["wordpiece"], 30, tmp_path / "spans", cut="truncate")
    assert isinstance(found, Truncated)
    assert list(tmp_path.iterdir()) == []
    ours, theirs = found.take([3, 1]), tokenize_words(tokenizers["wordpiece"], [TEXTS[3], TEXTS[1]], 30)
    assert torch.equal(ours[0].ids, theirs[0].ids)


def test_words_of_a_document_that_fits_are_those_of_the_tokenizer(tokenizers, tmp_path):
    texts = Listed(text for text in ("the quick fox. over lazy dogs, brown", "the [SEP] dogs", "a </s> b, c"))
    for name in ("wordpiece", "trimmed"):
        text, words = made(texts, tokenizers[name], 64, tmp_path / name).take(range(3))
        expected, expected_words = tokenize_words(tokenizers[name], texts, 64)
        assert torch.equal(text.ids, expected.ids)
        assert torch.equal(text.lengths, expected.lengths)
        assert torch.equal(words, expected_words)


def test_what_cannot_be_done_is_refused_in_one_line(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    with pytest.raises(ValueError, match="across=true needs cut=sentences or cut=tokens"):
        made(TEXTS, tokenizer, 30, tmp_path / "spans", cut="truncate", across=True)
    with pytest.raises(ValueError, match=r"max_len=2 has no room .* 2 special tokens: use 3 or more"):
        made(TEXTS, tokenizer, 2, tmp_path / "spans")
    with pytest.raises(ValueError, match="none of the 2 documents has a token"):
        made(Listed(["", " "]), tokenizer, 30, tmp_path / "empty")
    bare = pickle.loads(pickle.dumps(tokenizer))
    bare.sep_token = None
    with pytest.raises(ValueError, match="neither sep_token nor eos_token"):
        made(TEXTS, bare, 30, tmp_path / "spans", across=True)
    assert not (tmp_path / "spans").exists()
