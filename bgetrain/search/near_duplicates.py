"""How much of their words two texts share, compared exactly: the candidates of a query are few."""

import re
from collections.abc import Iterable

WORDS = 3  # in a shingle
# signs of scripts that are written without spaces, each a word: Thai, Lao, Burmese, Khmer, kana, Han
SIGNS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
TOKEN = re.compile(rf"[{SIGNS}]|[^\W_{SIGNS}]+")


def shingles(text: str) -> frozenset[str]:
    """The runs of three words in a text, lower case and without punctuation; of a shorter text, its words together.

    Broder 1997, "On the resemblance and containment of documents".
    """
    words = TOKEN.findall(text.lower()) or [text.strip()]
    return frozenset(" ".join(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity of two sets that are not empty, 0 to 1: shared / all."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def is_near(one: frozenset[str], others: Iterable[frozenset[str]], threshold: float) -> bool:
    """Whether `one` is at least `threshold` alike to any of `others`."""
    for other in others:
        small, large = sorted((len(one), len(other)))
        # no two sets are more alike than the smaller is to the larger
        if small >= threshold * large and similarity(one, other) >= threshold:
            return True
    return False
