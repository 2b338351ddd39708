"""Queries, their ranked passages and the rules, to rows with negatives."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bgetrain.distributed import from_rank, share
from bgetrain.search.audit import AT_RANDOM, OWN, Mined
from bgetrain.search.blocks import Ranked
from bgetrain.search.negatives import Asked, random_places, select
from bgetrain.search.rescore import Score, texts_at
from bgetrain.search.rules import Rules
from bgetrain.sources import Retrieval
from bgetrain.types import World

FILL = 4  # passages drawn at random for each that is missing: the rules drop some of them
DIGITS = 6  # of a score that is written


class Miner(NamedTuple):
    """What is the same for all queries.

    Attributes:
        retrieval: queries and passages.
        rules: which negatives are drawn.
        seed: of the draw.
        equal: number of a query -> the numbers of all with its text; those without their like are not in it.
        score: scores by the cross-encoder where there is one, else by the model; the rules apply to these.
    """

    retrieval: Retrieval
    rules: Rules
    seed: int
    equal: Mapping[int, list[int]]
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


def mine(miner: Miner, numbers: range, places: np.ndarray, scores: np.ndarray) -> tuple[list[Mined], Counter[str], Counter[str]]:
    """Draws the negatives of some queries; those without a positive are left out. Every rank calls it equally often.

    Args:
        miner: what is the same for all queries.
        numbers: of Q queries, one after the other; there may be none.
        places: int64 [Q, K], of the passages that the model ranks first to last; -1: none.
        scores: fp32 [Q, K], the model's.

    Returns:
        One row for each query with a positive, in order.
        Counts: candidates, own_negatives_left_out.
        Dropped: reason -> candidates.
    """
    counts: Counter[str] = Counter()
    block = prepared(miner, numbers, counts)
    kept = [number - numbers.start for number in block.numbers]
    ranked = places[kept]
    drawn, dropped = from_window(miner, block, ranked, scores[kept].astype(np.float64), counts)
    if miner.rules.fill == "random":
        dropped += fill(miner, block, ranked, drawn, counts)
    own_scores = miner.score(block.numbers, padded(block.own))
    mined = []
    for row, number in enumerate(block.numbers):
        own = block.own[row]
        of_negatives = [*own_scores[row, : len(own)].tolist(), *drawn.scores[row]]
        of_positives = block.relevant_scores[row, : len(block.positives[row])].tolist()
        positives, negatives = (
            [block.texts[place] for place in listed] for listed in (block.positives[row], [*own, *drawn.places[row]])
        )
        line = row_of(miner, number, positives, negatives, of_positives, of_negatives)
        mined.append(Mined(block.asked.names[row], line, of_positives, of_negatives, [*[OWN] * len(own), *drawn.ranks[row]]))
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


def from_window(
    miner: Miner, block: Block, ranked: np.ndarray, scores: np.ndarray, counts: Counter[str]
) -> tuple[Drawn, Counter[str]]:
    """Draws from the ranks first to last."""
    rules = miner.rules
    window, scores = ranked[:, rules.first :], scores[:, rules.first :]
    if rules.rescore is not None:
        scores = miner.score(block.numbers, window)
    columns, dropped = chosen(miner, block, window, scores, block.asked, [rules.number] * len(window), rules, counts)
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
    scores = miner.score(block.numbers, places)
    asked, random = block.asked._replace(negatives=have), rules._replace(sampling="random")
    columns, dropped = chosen(miner, block, places, scores, asked, missing, random, counts)
    for row, listed in enumerate(columns):
        drawn.places[row].extend(places[row, listed].tolist())
        drawn.scores[row].extend(scores[row, listed].tolist())
        drawn.ranks[row].extend([AT_RANDOM] * len(listed))
    return dropped


def chosen(
    miner: Miner,
    block: Block,
    places: np.ndarray,
    scores: np.ndarray,
    asked: Asked,
    number: Sequence[int],
    rules: Rules,
    counts: Counter[str],
) -> tuple[list[list[int]], Counter[str]]:
    """Columns of `places` that are drawn, and what was dropped."""
    counts["candidates"] += int((places >= 0).sum())
    texts = texts_at(miner.retrieval, places)
    block.texts.update(texts)
    names = dict(zip(texts, miner.retrieval.passages.names(list(texts)), strict=True))
    found = select(places, scores, asked, names=names, texts=texts, rules=rules, number=number, seed=miner.seed)
    return found.columns, found.dropped


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


def in_whole_blocks(found: Ranked, total: int, size: int, world: World) -> Ranked:
    """Moves queries between neighbours so that each rank has whole blocks of `size` queries.

    Args:
        found: what this rank has, as a search leaves it.
        total: queries of all ranks.
        size: of a block; the last one may be smaller.
        world: all ranks.
    """
    ranks = [world._replace(rank=rank) for rank in range(world.size)]
    have = [share(total, each) for each in ranks]
    blocks = [share(-(-total // size), each) for each in ranks]
    want = [range(min(part.start * size, total), min(part.stop * size, total)) for part in blocks]
    pieces = []
    for target, wanted in enumerate(want):
        for owner, part in enumerate(have):
            piece = range(max(part.start, wanted.start), min(part.stop, wanted.stop))
            if not len(piece) or (owner == target and world.rank != target):
                continue
            at = slice(piece.start - part.start, piece.stop - part.start)
            arrays = []
            for each in (found.scores, found.places):
                rows = each[at] if world.rank == owner else np.zeros((len(piece), each.shape[1]), each.dtype)
                arrays.append(rows if owner == target else from_rank(rows, owner, world))
            if world.rank == target:
                pieces.append(arrays)
    own = want[world.rank]
    scores, places = (
        np.concatenate([piece[at] for piece in pieces]) if pieces else each[:0] for at, each in enumerate(found[1:3])
    )
    return found._replace(queries=own, scores=scores, places=places)


def padded(places: Sequence[Sequence[int]]) -> np.ndarray:
    """int64 [Q, longest], -1 beyond the end of each."""
    found = np.full((len(places), max(map(len, places), default=0)), -1, np.int64)
    for row, listed in enumerate(places):
        found[row, : len(listed)] = listed
    return found
