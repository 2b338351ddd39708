"""Where documents are cut: against a slow reference, and by hand."""

from collections import Counter
from itertools import product
from typing import NamedTuple

import pytest
from documents import TEXTS, Listed, made, taken, trained, whole

from bgetrain.data.cuts import ENDS

NAMES = ["wordpiece", "trimmed", "byte level", "metaspace"]


@pytest.fixture(scope="module")
def tokenizers():
    return trained(TEXTS)


def plain(tokenizer, ids) -> str:
    """A span in words."""
    return " ".join(tokenizer.convert_ids_to_tokens(ids)).replace(" ##", "").replace(" .", ".")


PLACES = [  # a sign where a sentence ends there, and what stands behind it
    ('One.| Two?!| "Three."| (Four!)| Five', 4),
    ("3.5 a.b www.c.d .5 e.", 0),
    ("One…| two...| three ...four", 2),
    ("Line\n|line.\n\n|Line\r\n|end", 3),
    ("我们去。|他说：「好！」|天气.|好！？|大家，都", 4),
    ("क्या है।| हाँ॥| هل؟| نعم۔| end", 4),
    (".........| a!b.........", 1),
]


@pytest.mark.parametrize(("marked", "count"), PLACES)
def test_sentences_end_where_the_strokes_are(marked, count):
    pieces = marked.split("|")
    text = "".join(pieces)
    expected, place = [], 0
    for piece in pieces[:-1]:
        place += len(piece)
        expected.append(place)
    assert [match.end() for match in ENDS.finditer(text)] == expected
    assert len(expected) == count


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
            elif word:
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
    sentences = ["the quick brown fox jumps.", "seven wizards brew potions.", "a lazy fox.", "the dogs.", "over the fox."]
    sizes = [len(whole(tokenizer, each)) for each in sentences]
    max_len = sizes[0] + sizes[1] + 2 + 1  # specials, and one token of the third
    found = made(Listed([" ".join(sentences)]), tokenizer, max_len, tmp_path / "spans")
    told = [plain(tokenizer, ids).removeprefix("[CLS] ").removesuffix(" [SEP]") for ids, _ in taken(found)]
    assert told[0] == " ".join(sentences[:2])
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
