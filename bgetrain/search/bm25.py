"""BM25, the lexical ranking that embeddings are compared with."""

from collections.abc import Sequence

import numpy as np


def bm25(queries: Sequence[str], corpus: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks the corpus for each query by BM25 as Lucene computes it.

    The settings are the defaults of bm25s 0.3, written out: k1 = 1.5, b = 0.75, lower-cased words of two letters or
    more, English stop words dropped, no stemming. Passages of equal score come in the order of their positions; those
    that share no word with the query have score 0 and fill the row.

    Args:
        queries: Q texts.
        corpus: C texts.
        k: results per query; cut to C.

    Returns:
        scores: fp32 [Q, k], >= 0, falling along each row.
        positions: int64 [Q, k], 0 <= position < C.

    Raises:
        ValueError: the corpus is empty or has no words, or k is below 1.
    """
    import bm25s

    if not len(corpus):
        raise ValueError("corpus has no passages: there is nothing to search")
    if k < 1:
        raise ValueError(f"k={k}: must be a whole number above 0")
    settings = {"lower": True, "token_pattern": r"(?u)\b\w\w+\b", "stopwords": "english", "stemmer": None}
    tokens = bm25s.tokenize(list(corpus), show_progress=False, **settings)
    if not any(tokens.ids):
        raise ValueError(f"corpus: none of {len(corpus)} passages has a word that BM25 could count")
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(tokens, show_progress=False)
    words = bm25s.tokenize(list(queries), show_progress=False, return_ids=False, **settings)
    k = min(k, len(corpus))
    scores = np.empty((len(words), k), np.float32)
    positions = np.empty((len(words), k), np.int64)
    for row, query in enumerate(words):
        # not index.retrieve(): which of equal scores it keeps at the k-th place is up to np.argpartition
        known = [index.vocab_dict[word] for word in query if word in index.vocab_dict]
        every = index.get_scores_from_ids(known)  # [C]
        positions[row] = _best(every, k)
        scores[row] = every[positions[row]]
    return scores, positions


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest of `scores` [C], equal ones by position."""
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > threshold)
    equal = np.flatnonzero(scores == threshold)[: k - len(above)]
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], equal])
