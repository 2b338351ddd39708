"""Queries, their ranked passages and the rules, to rows with negatives."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bgetrain.search.audit import AT_RANDOM, OWN, Mined
from bgetrain.search.negatives import Asked, random_places, select
from bgetrain.search.rescore import similarities
from bgetrain.search.rules import Rules
from bgetrain.types import Retrieval

FILL = 4  # passages drawn at random for each that is missing: the rules drop some of them
DIGITS = 6  # of a score that is written

# numbers of Q queries, places of passages [Q, K] with -1 for none -> fp64 [Q, K]
Score = Callable[[Sequence[int], np.ndarray], np.ndarray]


class Miner(NamedTuple):
    """What is the same for all queries.

    Attributes:
        retrieval: queries and passages.
        rules: which negatives are drawn.
        seed: of the draw.
        equal: number of a query -> the numbers of all with its text; those without their like are not in it.
        rank: scores by the model, which make the window.
        score: scores by the cross-encoder where there is one, else by the model; the rules apply to these.
    """

    retrieval: Retrieval
    rules: Rules
    seed: int
    equal: Mapping[int, list[int]]
    rank: Score
    score: Score


class Block(NamedTuple):
    """Some queries, all with a positive.

    Attributes:
        numbers: of the queries.
        positives: of each, the places of its own positives; those without text are left out.
        relevant: these, and after them the positives of other rows with the same query.
        own: of each, the places of its own negatives that are kept.
        asked: the queries as the rules see them.
        relevant_scores: fp64 [Q, R], 0 beyond the end of `relevant`.
        texts: place -> text, of all passages met so far.
    """

    numbers: list[int]
    positives: list[list[int]]
    relevant: list[list[int]]
    own: list[list[int]]
    asked: Asked
    relevant_scores: np.ndarray
    texts: dict[int, str]


class Drawn(NamedTuple):
    """Negatives of some queries: of each, places, scores and ranks as `Mined` has them."""

    places: list[list[int]]
    scores: list[list[float]]
    ranks: list[list[int]]


def model_score(queries: Callable[[Sequence[int]], np.ndarray], passages: Callable[[np.ndarray], np.ndarray]) -> Score:
    """Similarities of embeddings.

    Args:
        queries: numbers of queries -> fp32 [Q, D].
        passages: places, rising -> fp32 [U, D].
    """

    def score(numbers: Sequence[int], places: np.ndarray) -> np.ndarray:
        distinct, at = np.unique(places, return_inverse=True)
        at = at.reshape(places.shape) - int(len(distinct) > 0 and distinct[0] < 0)
        return similarities(queries(numbers), passages(distinct[distinct >= 0]), at)

    return score


def pair_score(retrieval: Retrieval, judge: Callable[[Sequence[tuple[str, str]]], np.ndarray]) -> Score:
    """Scores by a cross-encoder, which sees queries without instruction; equal texts are scored once for a query."""

    def score(numbers: Sequence[int], places: np.ndarray) -> np.ndarray:
        texts = texts_at(retrieval, places)
        pairs: dict[tuple[int, str], int] = {}
        rows, columns = np.nonzero(places >= 0)
        asked = zip(rows.tolist(), places[rows, columns].tolist(), strict=True)
        which = [pairs.setdefault((row, texts[place]), len(pairs)) for row, place in asked]
        found = np.zeros(places.shape)
        found[rows, columns] = judge([(retrieval.queries[numbers[row]], text) for row, text in pairs])[which]
        return found

    return score


def mine(miner: Miner, numbers: range, ranked: np.ndarray) -> tuple[list[Mined], Counter[str], Counter[str]]:
    """Draws the negatives of some queries; those without a positive are left out.

    Args:
        miner: what is the same for all queries.
        numbers: of Q queries, one after the other.
        ranked: int64 [Q, K], places in the corpus, about in order; the model's scores put them in order.

    Returns:
        One row for each query with a positive, in order.
        Counts: candidates, own_negatives_left_out.
        Dropped: reason -> candidates.
    """
    counts: Counter[str] = Counter()
    block = prepared(miner, numbers, counts)
    if not block.numbers:
        return [], counts, Counter()
    ranked = ranked[[number - numbers[0] for number in block.numbers]]
    ranked = in_order(ranked, miner.rank(block.numbers, ranked))[:, : miner.rules.last]
    drawn, dropped = from_window(miner, block, ranked, counts)
    if miner.rules.fill == "random":
        dropped += fill(miner, block, ranked, drawn, counts)
    own_scores = miner.score(block.numbers, padded(block.own))
    mined = []
    for row, number in enumerate(block.numbers):
        own = block.own[row]
        scores = [*own_scores[row, : len(own)].tolist(), *drawn.scores[row]]
        positive_scores = block.relevant_scores[row, : len(block.positives[row])].tolist()
        positives, negatives = (
            [block.texts[place] for place in places] for places in (block.positives[row], [*own, *drawn.places[row]])
        )
        line = row_of(miner, number, positives, negatives, positive_scores, scores)
        mined.append(Mined(block.asked.names[row], line, positive_scores, scores, [*[OWN] * len(own), *drawn.ranks[row]]))
    return mined, counts, dropped


def prepared(miner: Miner, numbers: range, counts: Counter[str]) -> Block:
    """What is known of the queries before anything is drawn."""
    retrieval, texts = miner.retrieval, dict[int, str]()
    groups = [[number, *(other for other in miner.equal.get(number, ()) if other != number)] for number in numbers]
    named = [[name for number in group for name in retrieval.qrels[retrieval.query_ids[number]]] for group in groups]
    own_named = [list(retrieval.qrels[retrieval.query_ids[number]]) for number in numbers]
    positives, relevant = places_of(retrieval, own_named, texts), places_of(retrieval, named, texts)
    own = places_of(retrieval, [retrieval.negatives.get(retrieval.query_ids[number], ()) for number in numbers], texts)
    kept = [row for row, places in enumerate(positives) if places]
    chosen_numbers, positives = [numbers[row] for row in kept], [positives[row] for row in kept]
    relevant = [list(dict.fromkeys(relevant[row])) for row in kept]
    own = [without(own[row], places, texts) for row, places in zip(kept, relevant, strict=True)]
    if not miner.rules.keep_negatives:
        counts["own_negatives_left_out"] += sum(map(len, own))
        own = [[] for _ in own]
    scores = miner.score(chosen_numbers, padded(relevant))
    asked = Asked(
        [retrieval.query_ids[number] for number in chosen_numbers],
        [retrieval.queries[number] for number in chosen_numbers],
        [[texts[place] for place in places] for places in relevant],
        [[texts[place] for place in places] for places in own],
        np.array([scores[row, : len(places)].min() for row, places in enumerate(relevant)]),
    )
    return Block(chosen_numbers, positives, relevant, own, asked, scores, texts)


def from_window(miner: Miner, block: Block, ranked: np.ndarray, counts: Counter[str]) -> tuple[Drawn, Counter[str]]:
    """Draws from the ranks first to last."""
    rules = miner.rules
    window = ranked[:, rules.first :]
    columns, scores, dropped = chosen(miner, block, window, block.asked, [rules.number] * len(window), rules, counts)
    places = [window[row, listed].tolist() for row, listed in enumerate(columns)]
    of_chosen = [scores[row, listed].tolist() for row, listed in enumerate(columns)]
    return Drawn(places, of_chosen, [[rules.first + column for column in listed] for listed in columns]), dropped


def fill(miner: Miner, block: Block, ranked: np.ndarray, drawn: Drawn, counts: Counter[str]) -> Counter[str]:
    """Adds to `drawn` passages from beyond the ranking, under the same rules, for the queries that are short."""
    rules, total = miner.rules, len(miner.retrieval.passages)
    missing = [rules.number - len(places) for places in drawn.places]
    candidates = []
    for row, name in enumerate(block.asked.names):
        excluded = {*ranked[row].tolist(), *block.relevant[row], *block.own[row]}
        number = FILL * missing[row]
        candidates.append(random_places(total, number, excluded, seed=miner.seed, query_name=name) if number else [])
    places = padded(candidates)
    have = [
        [*listed, *(block.texts[place] for place in found)]
        for listed, found in zip(block.asked.negatives, drawn.places, strict=True)
    ]
    random = rules._replace(sampling="random")
    columns, scores, dropped = chosen(miner, block, places, block.asked._replace(negatives=have), missing, random, counts)
    for row, listed in enumerate(columns):
        drawn.places[row].extend(places[row, listed].tolist())
        drawn.scores[row].extend(scores[row, listed].tolist())
        drawn.ranks[row].extend([AT_RANDOM] * len(listed))
    return dropped


def chosen(
    miner: Miner, block: Block, places: np.ndarray, asked: Asked, number: Sequence[int], rules: Rules, counts: Counter[str]
) -> tuple[list[list[int]], np.ndarray, Counter[str]]:
    """Columns of `places` that are drawn, the scores of all of them, and what was dropped."""
    counts["candidates"] += int((places >= 0).sum())
    scores = miner.score(block.numbers, places)
    texts = texts_at(miner.retrieval, places)
    block.texts.update(texts)
    names = dict(zip(texts, miner.retrieval.passages.names(list(texts)), strict=True))
    found = select(places, scores, asked, names=names, texts=texts, rules=rules, number=number, seed=miner.seed)
    return found.columns, scores, found.dropped


def row_of(
    miner: Miner,
    number: int,
    positives: list[str],
    negatives: list[str],
    positive_scores: Sequence[float],
    negative_scores: Sequence[float],
) -> dict[str, Any]:
    """A query's row as data=jsonl reads it."""
    row: dict[str, Any] = {"query": miner.retrieval.queries[number], "pos": positives, "neg": negatives}
    if miner.rules.write_scores or miner.rules.rescore is not None:
        row["pos_scores"] = [round(score, DIGITS) for score in positive_scores]
        row["neg_scores"] = [round(score, DIGITS) for score in negative_scores]
    if miner.retrieval.prompts[number] is not None:
        row["prompt"] = miner.retrieval.prompts[number]
    return row


def places_of(retrieval: Retrieval, named: Sequence[Sequence[str]], texts: dict[int, str]) -> list[list[int]]:
    """Of each list of passage names, the places of those that the corpus holds and that have text, which `texts` takes in."""
    places = retrieval.passages.find([name for names in named for name in names])
    texts.update(texts_at(retrieval, places))
    at = iter(places.tolist())
    listed = [[next(at) for _ in names] for names in named]
    return [[place for place in row if place >= 0 and texts[place].strip()] for row in listed]


def without(places: Sequence[int], relevant: Sequence[int], texts: Mapping[int, str]) -> list[int]:
    """Places, each text once, without those whose text is relevant."""
    known = {texts[place].strip() for place in relevant}
    first: dict[str, int] = {}
    for place in places:
        if texts[place].strip() not in known:
            first.setdefault(texts[place].strip(), place)
    return list(first.values())


def in_order(places: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each row of places by score, falling, then by place; -1 last."""
    scores = np.where(places < 0, -np.inf, scores)
    return np.take_along_axis(places, np.lexsort((places, -scores), axis=1), axis=1)


def padded(places: Sequence[Sequence[int]]) -> np.ndarray:
    """int64 [Q, longest], -1 beyond the end of each."""
    found = np.full((len(places), max(map(len, places), default=0)), -1, np.int64)
    for row, listed in enumerate(places):
        found[row, : len(listed)] = listed
    return found


def texts_at(retrieval: Retrieval, places: np.ndarray) -> dict[int, str]:
    """Place -> text, for all places but -1."""
    distinct = np.unique(places)
    distinct = distinct[distinct >= 0]
    return dict(zip(distinct.tolist(), retrieval.passages.take(distinct.tolist()), strict=True))
