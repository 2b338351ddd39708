"""BM25 against its formula."""

import re
from math import log

import numpy as np
import pytest

from bgetrain.search.bm25 import bm25

CORPUS = ["quick brown fox", "lazy dog sleeps long hours", "", "fox fox dog", "Fox and the dog", "quick brown fox"]


def formula(query: str, corpus: list[str], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Lucene's BM25 (Kamphuis et al. 2020, "Which BM25 Do You Mean?"): no factor k1 + 1."""
    passages = [[word for word in re.findall(r"\w\w+", text.lower()) if word not in ("the", "and")] for text in corpus]
    mean_length = sum(map(len, passages)) / len(passages)
    scores = np.zeros(len(corpus))
    for word in re.findall(r"\w\w+", query.lower()):
        having = sum(word in words for words in passages)
        idf = log(1 + (len(corpus) - having + 0.5) / (having + 0.5))
        for row, words in enumerate(passages):
            tf = words.count(word)
            scores[row] += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean_length))
    return scores


@pytest.mark.parametrize("query", ["fox", "QUICK dog", "dog dog fox", "sleeps xylophone"])
def test_scores_equal_lucenes_formula(query):
    scores, positions = bm25([query], CORPUS, len(CORPUS))
    expected = formula(query, CORPUS)
    np.testing.assert_allclose(scores[0], expected[positions[0]], rtol=1e-5, atol=1e-6)
    assert (np.diff(scores[0]) <= 0).all()
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)


def test_equal_scores_come_by_position_also_across_the_cut():
    corpus = ["fox"] * 300 + ["fox fox"] + ["dog"] * 300
    assert bm25(["fox"], corpus, 5)[1].tolist() == [[300, 0, 1, 2, 3]]
    assert bm25(["dog"], corpus, 302)[1].tolist() == [[*range(301, 601), 0, 1]]
    twice_once_never = ["fox fox dog", "fox dog dog", "dog dog dog"] * 200
    assert bm25(["fox"], twice_once_never, 401)[1].tolist() == [[*range(0, 600, 3), *range(1, 600, 3), 2]]


@pytest.mark.parametrize("query", ["", "the", "xylophone"])
def test_query_without_known_words_scores_zero(query):
    scores, positions = bm25(["fox", query], CORPUS, 3)
    assert scores[1].tolist() == [0, 0, 0]
    assert positions[1].tolist() == [0, 1, 2]


def test_k_beyond_the_corpus_is_cut():
    assert bm25(["fox"], CORPUS, 100)[1].shape == (1, len(CORPUS))


def test_nothing_is_printed(capfd):
    bm25(["fox"], CORPUS, 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("corpus", "k", "message"), [([], 1, "no passages"), (["", "the"], 1, "none of 2"), (CORPUS, 0, "k=0: must be")]
)
def test_what_cannot_be_ranked_is_refused(corpus, k, message):
    with pytest.raises(ValueError, match=message):
        bm25(["fox"], corpus, k)
