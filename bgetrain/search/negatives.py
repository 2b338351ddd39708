"""Hard negatives from a window of ranks: below the positives, above what is easy (BGE mines ranks 10 to 210)."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from bgetrain.search.near_duplicates import is_near, shingles
from bgetrain.search.rules import REASONS, Rules, dropped_by_score


class Selection(NamedTuple):
    """The negatives of some queries.

    Attributes:
        columns: of each query, which of its candidates are its negatives, in the order drawn.
        dropped: reason -> candidates, over all queries.
    """

    columns: list[list[int]]
    dropped: Counter[str]


class Asked(NamedTuple):
    """Q queries as the rules see them.

    Attributes:
        names: Q names, which seed the draw.
        texts: Q texts; a passage with the text of its query is no negative.
        positives: of each query, the texts of all passages known to be relevant; these are no negatives either.
        negatives: of each query, texts that are its negatives already; they are not drawn again.
        lowest: fp64 [Q], the lowest score of each query's positives.
    """

    names: Sequence[str]
    texts: Sequence[str]
    positives: Sequence[Collection[str]]
    negatives: Sequence[Collection[str]]
    lowest: np.ndarray


def select(
    places: np.ndarray,
    scores: np.ndarray,
    asked: Asked,
    *,
    names: Mapping[int, str],
    texts: Mapping[int, str],
    rules: Rules,
    number: Sequence[int],
    seed: int,
) -> Selection:
    """Draws negatives for each query from its candidates.

    Texts are compared without the white space around them; of candidates with equal texts the one with the smallest name
    stays. Which are drawn is a function of the seed, the query's name, and the names, texts and scores of its candidates
    and positives: not of the candidates' order, of other queries, or of the number of ranks.

    Args:
        places: int64 [Q, K], candidates in the corpus; a query's are distinct. -1: none.
        scores: fp64 [Q, K].
        asked: the queries.
        names: place -> name, of every candidate.
        texts: place -> text, of every candidate.
        rules: what is dropped, and how is drawn.
        number: of each query, negatives to draw.
        seed: another seed gives another draw from the same candidates.

    Raises:
        ValueError: a score is not finite.
    """
    bad = np.argwhere(~np.isfinite(scores) & (places >= 0))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"query {asked.names[row]!r}: the score of passage {names[places[row, column]]!r} is {scores[row, column]}"
        )
    reasons = reasons_to_drop(places, scores, asked, names, texts, rules)
    columns = []
    encoded = {place: name.encode() for place, name in names.items()}
    for row, name in enumerate(asked.names):
        kept = np.flatnonzero(reasons[row] == -1)
        start = blake2b(json.dumps([seed, name]).encode(), digest_size=8)
        order = ordered(kept, scores[row], [encoded[place] for place in places[row, kept].tolist()], rules, start)
        if rules.near_duplicate is not None:
            order = apart(
                order,
                reasons[row],
                [*asked.positives[row], *asked.negatives[row]],
                places[row],
                texts,
                rules.near_duplicate,
                number[row],
            )
        columns.append(order[: number[row]])
    counts = np.bincount(reasons[reasons >= 0], minlength=len(REASONS))
    return Selection(columns, Counter({reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count}))


def reasons_to_drop(
    places: np.ndarray,
    scores: np.ndarray,
    asked: Asked,
    names: Mapping[int, str],
    texts: Mapping[int, str],
    rules: Rules,
) -> np.ndarray:
    """int64 [Q, K]: the first of REASONS that drops each candidate, by its number; -1: it stays; -2: there is none."""
    found = np.where(places < 0, -2, -1)
    numbered: dict[str, int] = {"": 0}  # stripped text -> number
    distinct, at = np.unique(places, return_inverse=True)
    codes = [numbered.setdefault(texts[place].strip(), len(numbered)) if place >= 0 else -1 for place in distinct.tolist()]
    code = np.array(codes, np.int64)[at].reshape(places.shape)  # [Q, K]
    first = len(numbered) * np.arange(len(places))  # number of the query's first text, if each query had its own

    def drop(reason: str, which: np.ndarray) -> None:
        found[(found == -1) & which] = REASONS.index(reason)

    def among(listed: Iterable[Iterable[str]]) -> np.ndarray:
        pairs = zip(first.tolist(), listed, strict=True)
        known = [start + numbered[text.strip()] for start, of_one in pairs for text in of_one if text.strip() in numbered]
        return np.isin(code + first[:, None], np.array(known, np.int64))

    drop("empty", code == 0)
    drop("positive", among(asked.positives))
    drop("query", among([text] for text in asked.texts))
    drop("equal_text", among(asked.negatives))
    drop("equal_text", repeated(np.where(found == -1, code, -1), places, names))
    for reason, which in dropped_by_score(scores, asked.lowest, rules).items():
        drop(reason, which)
    return found


def repeated(code: np.ndarray, places: np.ndarray, names: Mapping[int, str]) -> np.ndarray:
    """bool [Q, K]: True where a candidate of the same query has the same text and a smaller name.

    Args:
        code: int64 [Q, K], a number for each text; -1: not compared.
        places: int64 [Q, K].
        names: place -> name.
    """
    again = np.zeros(code.shape, bool)
    in_order = np.sort(code, axis=1)
    for row in np.flatnonzero(((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any(axis=1)):
        kept: dict[int, int] = {}
        for column in np.flatnonzero(code[row] >= 0).tolist():
            other = kept.setdefault(int(code[row, column]), column)
            if names[int(places[row, column])] < names[int(places[row, other])]:
                kept[int(code[row, column])] = column
        again[row] = code[row] >= 0
        again[row, list(kept.values())] = False
    return again


def ordered(kept: np.ndarray, scores: np.ndarray, named: Sequence[bytes], rules: Rules, start: "blake2b") -> list[int]:
    """The columns `kept` in the order in which they are drawn.

    Args:
        kept: int64 [n], columns of `scores`.
        scores: fp64 [K].
        named: n names of passages.
        rules: how is drawn.
        start: a hash that has taken the seed and the query's name.
    """
    hashes = hashed(start, named)
    if rules.sampling == "random":
        return kept[np.argsort(hashes)].tolist()
    falling = scores[kept]
    if rules.sampling == "weighted":
        # the largest of log-weight + Gumbel noise are a sample without replacement: Kool et al. 2019, arXiv:1903.06059
        share = ((hashes >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52  # never 0 or 1
        falling = falling / rules.temperature - np.log(-np.log(share))
    return kept[np.lexsort((hashes, -falling))].tolist()


def hashed(start: "blake2b", names: Iterable[bytes]) -> np.ndarray:
    """uint64 [n], a number for each name."""
    found, copy = [], start.copy
    for name in names:
        state = copy()
        state.update(name)
        found.append(state.digest())
    return np.frombuffer(b"".join(found), ">u8").astype(np.uint64)


def apart(
    order: Sequence[int],
    reasons: np.ndarray,
    taken: Sequence[str],
    places: np.ndarray,
    texts: Mapping[int, str],
    threshold: float,
    number: int,
) -> list[int]:
    """The first `number` columns of `order` that are no near-duplicates of a text in `taken` or of one before them.

    Those passed over are marked in `reasons`.
    """
    near = [shingles(text) for text in taken]
    chosen: list[int] = []
    for column in order:
        if len(chosen) == number:
            break
        candidate = shingles(texts[int(places[column])])
        if is_near(candidate, near, threshold):
            reasons[column] = REASONS.index("near_duplicate")
        else:
            chosen.append(column)
            near.append(candidate)
    return chosen


def random_places(num_passages: int, number: int, excluded: Collection[int], *, seed: int, query_name: str) -> list[int]:
    """Places drawn from the whole corpus for one query, without replacement.

    Args:
        num_passages: C.
        number: how many, or all that there are.
        excluded: places that are not drawn.
        seed: another seed gives another draw.
        query_name: the same.
    """
    start = blake2b(json.dumps([seed, query_name, "fill"]).encode(), digest_size=8)
    if num_passages <= 4 * (number + len(excluded)):
        rest = [place for place in range(num_passages) if place not in excluded]
        return [rest[at] for at in np.argsort(hashed(start, (str(place).encode() for place in rest)))[:number]]
    found: dict[int, None] = {}
    attempt = 0
    while len(found) < number:  # each attempt finds one with a chance above 3 in 4
        place = int(hashed(start, [str(attempt).encode()])[0]) % num_passages
        attempt += 1
        if place not in excluded:
            found.setdefault(place)
    return list(found)


def same_text(texts: Iterable[str]) -> dict[int, list[int]]:
    """Which texts stand more than once: number of a text -> the numbers of all equal ones, itself among them.

    Surrounding white space does not count.
    """
    keys = np.array([int.from_bytes(blake2b(text.strip().encode(), digest_size=8).digest(), "big") for text in texts], np.uint64)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    groups: dict[int, list[int]] = {}
    for one, other in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        groups[other] = groups.setdefault(one, [one])
        groups[other].append(other)
    return groups
