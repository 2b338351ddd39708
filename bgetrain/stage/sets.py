"""Retrieval sets that a model is held against, one after the other: what stage=evaluate does with one it does with many."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import distributed, output
from bgetrain.data.files import fingerprint
from bgetrain.data.folders import sets_of
from bgetrain.logger import console
from bgetrain.metric import ranking, significance
from bgetrain.model.body import Body
from bgetrain.sources import Part, Retrieval, Source
from bgetrain.stage import build, embed, retrieval
from bgetrain.stage.outcomes import examples
from bgetrain.types import World

SHOWN = ("ndcg@10", "mrr@10", "recall@10", "recall@100", "map")
FINISHED = "sets"  # folder of the figures of sets that are done, by what they are of
Scores = dict[str, dict[str, float]]  # query name -> figure -> value


class Asked(NamedTuple):
    """The keys of `evaluate`, as `asked` has them."""

    bm25: bool
    compare: str | None


def asked(*, bm25: bool, compare: str | None) -> Asked:
    """What stage=evaluate does besides.

    Args:
        bm25: also ranks by BM25.
        compare: another evaluation's output folder, or a model, that the model is tested against; None: none.
    """
    return Asked(bm25, compare)


class Set(NamedTuple):
    """A retrieval set.

    Attributes:
        name: its folder's, or as the mixture names it; of `A/B` those with one A count as one in a mean.
        source: lengths, instruction and split.
        retrieval: the corpus and queries.
        files: their fingerprints.
    """

    name: str
    source: Source
    retrieval: Retrieval
    files: Mapping[str, Any]


class Outcome(NamedTuple):
    """Figures of a model on a set.

    Attributes:
        scores: of each query.
        search_recall: share of what exact search finds; None where the search is exact.
    """

    scores: Scores
    search_recall: float | None


def opened(cfg: build.Config, source: Source, world: World) -> list[Set]:
    """Opens all sets of a source before any is worked on.

    Raises:
        ValueError: some cannot be opened; names each of these.
    """
    parts = source.mix.parts if source.mix else [Part(name_of(cfg, source), source)]
    for part in parts:
        build.need(part.source.retrieval, part.source, cfg, "corpus and queries", "data=beir or data=pydocs")

    def one(part: Part) -> Set:
        assert part.source.retrieval is not None
        found = part.source.retrieval(part.source.split)
        return Set(part.name, part.source, found, fingerprint(part.source.files))

    makers = [partial(one, part) for part in parts]
    made: list[Set] = distributed.after_first(world, lambda: build.all_of(*makers))
    for each in made:
        build.tell(each.retrieval, world)
    return made


def name_of(cfg: build.Config, source: Source) -> str:
    """Of a source that is one set: its folder's, or the option's."""
    path = cfg["data"].get("path")
    return next(iter(sets_of(path))) if path else source.name.split()[0].removeprefix("data=")


def evaluated(cfg: build.Config, body: Body, sets: Sequence[Set], world: World) -> list[Outcome]:
    """Ranks the queries of each set by a model, or finds what an earlier run of the same has found.

    Args:
        cfg: the resolved config.
        body: the model.
        sets: of which those that are done in `output_dir` are not done again.
        world: all ranks; every one calls this.

    Returns:
        On rank 0 what came out of each set; elsewhere without scores.
    """
    model = embed.model_key(cfg, body, embed.encoder(cfg, body, world), world) if world.rank == 0 else ""
    outcomes = []
    for each in sets:
        place = Path(cfg["output_dir"]) / FINISHED / f"{key_of(cfg, model, each)}.json"
        kept = distributed.from_first(finished(place) if world.rank == 0 else None, world)
        if kept is None:
            if len(sets) > 1 and world.rank == 0:
                console.say(f"{each.name}: {len(each.retrieval.queries):,} queries, {len(each.retrieval.passages):,} passages")
            vectors = embed.embedded(cfg, body, each.source, each.retrieval, world)
            found = embed.ranked(cfg, vectors, retrieval.DEPTH, world)
            if each is sets[0]:
                examples(cfg, each.source, each.retrieval, vectors, found, world)
            kept = Outcome(retrieval.metrics_of_queries(each.retrieval, found, world), found.recall)
            if world.rank == 0:
                output.write(place, json.dumps({"set": each.name, **kept._asdict()}))
        elif world.rank == 0:
            console.say(f"{each.name}: done before, ndcg@10 {ranking.mean(kept.scores)['ndcg@10']:.4f}")
        outcomes.append(kept)
    return outcomes


def key_of(cfg: build.Config, model: str, each: Set) -> str:
    """Names all that the figures of a set depend on."""
    own = each.source
    facts = [model, cfg["search"], own.query_max_len, own.passage_max_len, own.query_instruction, own.split, each.files]
    return blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def finished(place: Path) -> Outcome | None:
    """What a file of FINISHED has; a file that is not whole counts as none."""
    try:
        known = json.loads(place.read_text("utf8"))
        return Outcome(known["scores"], known["search_recall"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weights(names: Sequence[str]) -> list[float]:
    """What each set counts for in the mean: all alike, those of one folder together as one, as BEIR counts CQADupStack."""
    groups = [name.partition("/")[0] for name in names]
    return [1 / len(set(groups)) / groups.count(group) for group in groups]


def figures(sets: Sequence[Set], outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """Metrics of all sets and of each with their intervals, for `result.json`."""
    single: dict[str, dict[str, Any]] = {}
    for each, outcome in zip(sets, outcomes, strict=True):
        single[each.name] = {
            "metrics": ranking.mean(outcome.scores),
            "intervals": {name: significance.interval(column(outcome.scores, name), seed=seed) for name in SHOWN},
            "queries": len(outcome.scores),
            "passages": len(each.retrieval.passages),
            **({} if outcome.search_recall is None else {"search_recall": outcome.search_recall}),
        }
    shares = weights([each.name for each in sets])
    found: dict[str, Any] = {
        "metrics": mean_of([each["metrics"] for each in single.values()], shares),
        "intervals": {
            name: significance.interval_of_sets([column(each.scores, name) for each in outcomes], shares, seed=seed)
            for name in SHOWN
        },
        "queries": sum(len(each.retrieval.queries) for each in sets),
        "passages": sum(len(each.retrieval.passages) for each in sets),
        "sets": single,
    }
    if len(sets) == 1 and outcomes[0].search_recall is not None:
        found["search_recall"] = outcomes[0].search_recall
    return found


def mean_of(metrics: Sequence[Mapping[str, float]], shares: Sequence[float]) -> dict[str, float]:
    return {name: sum(share * each[name] for share, each in zip(shares, metrics, strict=True)) for name in metrics[0]}


def column(scores: Scores, name: str) -> list[float]:
    return [each[name] for each in scores.values()]


def lines(sets: Sequence[Set], outcomes: Sequence[Outcome]) -> str:
    """What `queries.jsonl` has: a line for each query of each set."""
    rows = (
        json.dumps({"data": each.name, "query": query, **{name: values[name] for name in SHOWN}}, ensure_ascii=False)
        for each, outcome in zip(sets, outcomes, strict=True)
        for query, values in outcome.scores.items()
    )
    return "".join(f"{row}\n" for row in rows)
