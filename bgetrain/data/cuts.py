"""Where a document may be cut into spans, and where it is: at sentence ends, word boundaries, or the limit itself.

A document on its way into spans is uint32 [T]: the id of each token, and what is known of its place in the bits above.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from bgetrain.data.tokenize import word_begins, word_numbers

ID_BITS = 26  # 67 million words: two hundred times the largest vocabulary of today
ID = np.uint32((1 << ID_BITS) - 1)
BEGINS = np.uint32(1 << 31)  # a word begins at this token
WORD = np.uint32(1 << 30)  # a cut before this token parts no word
SENTENCE = np.uint32(1 << 29)  # a sentence ended before this token
SPECIAL = np.uint32(1 << 28)  # stands in no document: put around or between them
DOCUMENT = np.uint32(1 << 27)  # the first of a document
WRITTEN = np.uint32(1 << 26)  # a special token that the document's text has itself

# Ends of sentences: where words are parted by spaces, a sign with a space behind it ("3.5" and "a.b" are none); in CJK
# scripts any sign. Abbreviations pass for ends: a span then ends within a sentence, and nothing is lost.
SIGNS, CJK_SIGNS, BREAKS = ".!?…؟۔।॥።", "。！？；．｡", "\n\r\u2028\u2029"
CLOSING = "\"'”’»)\\]}」』）】》〉"
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
ENDS = re.compile(
    rf"[{SIGNS}{CJK_SIGNS}{BREAKS}]"  # a class alone comes first: it is searched for ten times as fast as alternatives
    # a run of signs is tried from its first and given up as a whole: a million dots take no longer than words
    rf"(?:(?<=[{SIGNS}])(?<![{SIGNS}]{{2}})[{SIGNS}]*+[{CLOSING}]*+(?=[\s{CJK}])[{BREAKS}]*+"
    rf"|(?<=[{CJK_SIGNS}])[{CJK_SIGNS}]*+[{CLOSING}]*+[{BREAKS}]*+|(?<=[{BREAKS}])[{BREAKS}]*+)"
)


def marked(tokenizer: Any, text: str, special: np.ndarray, *, sentences: bool) -> np.ndarray:
    """Tokens of a whole document, without special tokens around it, and where it may be cut.

    Args:
        tokenizer: of the package `tokenizers`; it does not truncate.
        text: the document.
        special: ids of `tokenize.special_ids`, which belong to no word.
        sentences: look for the ends of sentences.

    Returns:
        uint32 [T]; T = 0 where the text has no token.
    """
    # one by one: the encodings of a batch would be in memory together, at a hundred times the size of their ids
    encoded = tokenizer.encode(text, add_special_tokens=False)
    tokens = np.array(encoded.ids, np.uint32)
    if not len(tokens):
        return tokens
    words = word_numbers(encoded, special)
    begins = word_begins(words, np.zeros(1, np.int64))
    starts, ends = np.fromiter(chain.from_iterable(encoded.offsets), np.int64, 2 * len(tokens)).reshape(-1, 2).T
    # tokens that share a character, as bytes of it, are not parted
    tokens |= BEGINS * begins | WORD * (begins & (starts >= np.concatenate([starts[:1], ends[:-1]])))
    if sentences:
        found = np.fromiter((match.end() for match in ENDS.finditer(text)), np.int64)
        behind = np.searchsorted(np.maximum.accumulate(starts), found)
        tokens[behind[behind < len(tokens)]] |= SENTENCE
    written = np.isnan(words)
    tokens[written] = tokens[written] & ~BEGINS | WRITTEN
    tokens[0] = tokens[0] & (ID | WRITTEN) | BEGINS | DOCUMENT
    return tokens


def spans_of(
    stream: Iterable[np.ndarray], room: int, *, sentences: bool, separator: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts documents into spans, greedily, in the order in which they come.

    Args:
        stream: uint32 [n] each, n > 0: documents of `marked` end to end, broken anywhere.
        room: tokens of a span, > 0.
        sentences: a span ends at the last sentence end that fits, unless it would be less than half full. Else, and where
            there is none, it ends at the last word boundary that fits, `LONGEST_WORD` tokens before its limit at most, and
            at the limit only where there is none either.
        separator: spans go on over the ends of documents, with this token between these; None: they do not.

    Yields:
        For each piece of the stream, the tokens of the spans that it completes, end to end (ids, and the bits `BEGINS`
        and `SPECIAL`), and int64 lengths of these spans.
    """
    rest = np.zeros(0, np.uint32)
    for tokens in stream:
        if separator is not None:
            between = np.uint32(separator) | SPECIAL | SENTENCE | WORD
            tokens = np.insert(tokens, np.flatnonzero(tokens & DOCUMENT), between)
        tokens = np.concatenate([rest, tokens])
        found = cut_up(tokens, room, sentences=sentences, across=separator is not None)
        yield finished(tokens, found[:-1])  # the last may go on in what comes next
        rest = tokens[found[-1][0] :]
    if len(rest):
        yield finished(rest, [(0, len(rest))])


def cut_up(tokens: np.ndarray, room: int, *, sentences: bool, across: bool) -> list[tuple[int, int]]:
    """First and last + 1 of each span; a separator stands in a span or in none, but never at its end."""
    places = np.arange(len(tokens))
    # of each place, the last at or before it where a cut may be
    sentence, word = (np.maximum.accumulate(np.where(tokens & bit, places, 0)) for bit in (SENTENCE, WORD))
    firsts = np.flatnonzero(tokens & DOCUMENT)
    stops = [] if across else firsts[firsts > 0].tolist()
    found: list[tuple[int, int]] = []
    start = int(tokens[0] & SPECIAL > 0)
    for stop in (*stops, len(tokens)):
        while start < stop:
            end = stop
            if start + room < stop:
                end = start + room
                if sentences and 2 * (sentence[end] - start) >= room:
                    end = int(sentence[end])
                elif word[end] > start:
                    end = int(word[end])
            found.append((start, end))
            start = end + int(end < stop and tokens[end] & SPECIAL > 0)
    return found


def finished(tokens: np.ndarray, found: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of some spans, end to end, and their lengths; a word begins at the first of each."""
    first, last = np.array(found, np.int64).reshape(-1, 2).T
    tokens[first] |= BEGINS
    parts = [tokens[start:end] for start, end in found]
    joined = np.concatenate([tokens[:0], *parts])
    joined[joined & WRITTEN > 0] |= SPECIAL
    return joined & (ID | BEGINS | SPECIAL), last - first
