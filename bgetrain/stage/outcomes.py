"""examples.json of an evaluation: similarities of relevant and other passages, and what a model gets wrong, to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bgetrain import distributed
from bgetrain.metric.ranking import score
from bgetrain.search.blocks import Ranked
from bgetrain.search.shards import Embeddings
from bgetrain.sources import Retrieval, Source
from bgetrain.stage import build, embed
from bgetrain.stage.examples import FILE, MOST, Hardest, cut, keep, rounded, told
from bgetrain.types import World

FOUND = 5  # texts that are shown of what a query finds; our choice, as are the numbers below
HARD = 10  # places of a ranking whose passages that are not relevant count as hard negatives
POSITIVES = 5  # relevant passages of a query whose similarity is counted
POOL = 1000  # random passages that every query is compared with


def examples(cfg: build.Config, opened: Source, held: Retrieval, vectors: embed.Embedded, found: Ranked, world: World) -> None:
    """Writes examples.json of a retrieval set whose passages are embedded and ranked.

    Args:
        cfg: of the stage.
        opened: the data.
        held: its retrieval set.
        vectors: of its queries and passages.
        found: the best passages of this rank's share of the queries.
        world: all ranks; every one calls this.
    """
    judged = [number for number, name in enumerate(held.query_ids) if held.qrels.get(name)]
    draw = np.random.default_rng(cfg["seed"])
    drawn = draw.choice(len(judged), min(cfg["examples"], len(judged)), replace=False, shuffle=False)
    listed = {judged[at]: held.passages.find(list(held.qrels[held.query_ids[judged[at]]])) for at in np.sort(drawn).tolist()}
    relevant = {number: places[places >= 0] for number, places in listed.items() if (places >= 0).any()}
    if not relevant:
        return
    chosen, total = np.array(list(relevant)), vectors.passages.total
    pool = np.sort(draw.choice(total, min(POOL, total), replace=False, shuffle=False))
    columns = np.unique(np.concatenate([pool, *(places[:POSITIVES] for places in relevant.values())]))
    inside = chosen[(chosen >= found.queries.start) & (chosen < found.queries.stop)] - found.queries.start
    scores, places = (distributed.gather_arrays(each[inside], world) for each in (found.scores, found.places))
    queries, passages = gathered(vectors.queries, chosen, world), gathered(vectors.passages, columns, world)
    if world.rank > 0:
        return
    similarities = dict(zip(relevant, queries @ passages.T, strict=True))  # [P] of each query
    outcomes = [
        outcome(held, number, places, dict(zip(columns.tolist(), similarities[number], strict=True)), *own)
        for (number, places), *own in zip(relevant.items(), scores, places, strict=True)
    ]
    random, series = np.isin(columns, pool), []
    for number, places in relevant.items():
        positive, other = np.isin(columns, places[:POSITIVES]), random & ~np.isin(columns, places)
        series.append((similarities[number][positive], similarities[number][other]))
    kinds = {kind: np.concatenate(each) for kind, each in zip(("positive", "negative"), zip(*series, strict=True), strict=True)}
    kinds["hard negative"] = np.concatenate([each.scores[:HARD][~each.hits[:HARD]] for each in outcomes])
    of = f"{opened.split} of {opened.name.rpartition('.path=')[2]}, {len(chosen):,} queries"
    facts = told(f"{of}; negatives: {len(pool):,} random passages", {"after": kinds}, {}, hardest_of(held, outcomes))
    facts["worst_queries"] = worst_of(held, outcomes)
    keep(Path(cfg["output_dir"]) / FILE, facts)


def gathered(embeddings: Embeddings, places: np.ndarray, world: World) -> np.ndarray:
    """fp32 [n, D] on every rank; `places` rise, so that what the ranks have of them stands in their order."""
    own = places[(places >= embeddings.part.start) & (places < embeddings.part.stop)]
    return distributed.gather_arrays(embeddings.take(own), world)


class Outcome(NamedTuple):
    """What a query has found.

    Attributes:
        query: its number.
        ndcg: nDCG@10.
        positive: the place in the corpus of its relevant passage that is the most alike.
        rank: of the first relevant passage, from 1; None: none was found.
        positive_score: similarity of `positive`.
        scores: [k], falling, of the passages found.
        places: int64 [k], theirs in the corpus.
        hits: bool [k], whether they are relevant.
    """

    query: int
    ndcg: float
    positive: int
    rank: int | None
    positive_score: float
    scores: np.ndarray
    places: np.ndarray
    hits: np.ndarray


def outcome(
    held: Retrieval, number: int, relevant: np.ndarray, known: Mapping[int, float], scores: np.ndarray, places: np.ndarray
) -> Outcome:
    """Judges what a query has found; `known` are similarities of some of its relevant passages, by their places."""
    name, there = held.query_ids[number], places >= 0
    scores, places = scores[there], places[there]
    hits = np.isin(places, relevant)
    run = dict(zip(held.passages.names(places.tolist()), scores.tolist(), strict=True))
    ndcg = score({name: run}, {name: held.qrels[name]})["ndcg@10"]
    first = int(hits.argmax()) if hits.any() else None
    if first is not None:
        return Outcome(number, ndcg, int(places[first]), first + 1, float(scores[first]), scores, places, hits)
    best = max(relevant[:POSITIVES].tolist(), key=lambda place: known[place])
    return Outcome(number, ndcg, best, None, float(known[best]), scores, places, hits)


def hardest_of(held: Retrieval, outcomes: Sequence[Outcome]) -> list[Hardest]:
    """Of each query the first passage found that is not relevant; of all queries those furthest above their positives."""
    firsts = [(each, int((~each.hits).argmax())) for each in outcomes if not each.hits.all()]
    firsts.sort(key=lambda pair: pair[0].positive_score - pair[0].scores[pair[1]])
    found = []
    for each, at in firsts[:MOST]:
        positive, negative = held.passages.take([each.positive, int(each.places[at])])
        found.append(Hardest(held.queries[each.query], positive, negative, each.positive_score, float(each.scores[at])))
    return found


def worst_of(held: Retrieval, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The queries of lowest nDCG@10; of equal ones those whose positives stand lower come first."""
    worst = sorted(outcomes, key=lambda each: (each.ndcg, -(each.rank or len(each.scores) + 1), each.positive_score))
    return [
        {
            "query": cut(held.queries[each.query]),
            "positive": cut(held.passages.take([each.positive])[0]),
            "rank": each.rank,
            "ndcg@10": rounded(each.ndcg),
            "found": [
                {"text": cut(text), "score": rounded(value), "relevant": bool(hit)}
                for text, value, hit in zip(
                    held.passages.take(each.places[:FOUND].tolist()), each.scores[:FOUND], each.hits[:FOUND], strict=True
                )
            ],
        }
        for each in worst[:MOST]
    ]
