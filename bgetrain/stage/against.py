"""A model's figures held against another's on the same queries: `evaluate.compare` of stage=evaluate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bgetrain import distributed
from bgetrain.data.files import lines
from bgetrain.logger import console
from bgetrain.metric import significance
from bgetrain.model.body import Body
from bgetrain.stage import build, sets
from bgetrain.types import World

QUERIES = "queries.jsonl"  # what makes a folder that of an evaluation
MAIN = "ndcg@10"


class Other:
    """What a model is compared with.

    Attributes:
        cfg: of stage=evaluate, with that model in the place of ours.
        body: the model; None: the other is an evaluation.
        scores: of an evaluation, set -> query -> figure -> value.
    """

    def __init__(self, cfg: build.Config, body: Body | None, scores: dict[str, sets.Scores]) -> None:
        self.cfg, self.body, self.scores = cfg, body, scores


def opened(cfg: build.Config, held: Sequence[sets.Set], world: World) -> Other | None:
    """Opens what `evaluate.compare` names before anything is embedded; None where it names nothing.

    Raises:
        ValueError: it is neither an evaluation nor a model, or an evaluation of other sets or queries.
    """
    path = cfg["evaluate"]["compare"]
    if path is None:
        return None
    folder = Path(path).expanduser()
    if (folder / QUERIES).is_file():
        scores = distributed.after_first(world, lambda: read(folder / QUERIES))
        check(path, scores, held)
        return Other(cfg, None, scores)
    if (folder / "provenance.json").is_file():  # a run's
        better = f"; its model is {path}/model" if (folder / "model").is_dir() else ": is it a finished stage=evaluate?"
        raise ValueError(f"evaluate.compare={path}: the run has no {QUERIES}{better}")
    theirs = {**cfg, "examples": 0, "model": {**cfg["model"], "path": path}}  # the folder's examples are of its own model
    source = held[0].source._replace(
        query_max_len=max(each.source.query_max_len for each in held),
        passage_max_len=max(each.source.passage_max_len for each in held),
    )
    try:
        return Other(theirs, build.body(theirs, source, world, masked_lm=False), {})
    except ValueError as error:  # in whose words it is model.path
        words = str(error).replace("model.path=", "evaluate.compare=").partition(", or build")[0]
        raise ValueError(f"{words} (without {QUERIES} in it, it is taken as a model)") from error


def read(path: Path) -> dict[str, sets.Scores]:
    """Reads `queries.jsonl`.

    Raises:
        ValueError: a line that stage=evaluate does not write; names file and line.
    """
    found: dict[str, sets.Scores] = {}
    for row, where in lines(path):
        values = {name: row.get(name) for name in sets.SHOWN}
        if not isinstance(row.get("data"), str) or not all(isinstance(each, int | float) for each in values.values()):
            raise ValueError(f"{where}: must have data, query and {', '.join(sets.SHOWN)}, as stage=evaluate writes them")
        found.setdefault(row["data"], {})[str(row.get("query"))] = {name: float(values[name] or 0) for name in sets.SHOWN}
    return found


def check(path: str, scores: Mapping[str, sets.Scores], held: Sequence[sets.Set]) -> None:
    """Refuses an evaluation that has not the same sets and queries; more sets than ours it may have."""
    missing = [each.name for each in held if each.name not in scores]
    if missing:
        raise ValueError(
            f"evaluate.compare={path} has figures of {', '.join(scores) or 'nothing'}, not of {', '.join(missing)}: "
            "evaluate both on the same data.path"
        )
    for each in held:
        ours, theirs = set(each.retrieval.qrels), set(scores[each.name])
        if ours != theirs:
            odd = sorted(ours ^ theirs)
            raise ValueError(
                f"evaluate.compare={path} has {len(theirs):,} queries of {each.name}, this run {len(ours):,}, and {len(odd):,} "
                f"are in one alone, e.g. {odd[0]!r}: evaluate both on the same data.split"
            )


def outcomes(other: Other, held: Sequence[sets.Set], world: World) -> list[sets.Scores]:
    """The other's figures of each set; every rank calls this where it is a model."""
    if other.body is None:
        return [other.scores[each.name] for each in held]
    return [each.scores for each in sets.evaluated(other.cfg, other.body, held, world)]


def compared(
    held: Sequence[sets.Set], ours: Sequence[sets.Scores], theirs: Sequence[sets.Scores], path: str, seed: int
) -> dict[str, Any]:
    """Tests the differences.

    Args:
        held: the sets.
        ours: figures of each.
        theirs: those of the other, of the same queries.
        path: of the other.
        seed: of the draws.

    Returns:
        `with`: the path; `sets`: set -> figure -> ours, theirs, difference, low, high, p; `mean`: the same of the mean of sets.
    """
    shares = sets.weights([each.name for each in held])

    def of(places: Sequence[int], weights: Sequence[float], name: str) -> dict[str, float]:
        one = [[ours[place][query][name] for query in ours[place]] for place in places]
        other = [[theirs[place][query][name] for query in ours[place]] for place in places]
        found = significance.paired_of_sets(one, other, weights, seed=seed)
        means = (sum(w * sum(v) / len(v) for w, v in zip(weights, part, strict=True)) for part in (one, other))
        return {**dict(zip(("ours", "theirs"), means, strict=True)), **found._asdict()}

    return {
        "with": path,
        "sets": {each.name: {name: of([i], [1.0], name) for name in sets.SHOWN} for i, each in enumerate(held)},
        "mean": {name: of(range(len(held)), shares, name) for name in sets.SHOWN},
    }


def show(found: Mapping[str, Any]) -> None:
    """Prints the differences: of one set each figure's, of several each set's in nDCG@10."""
    if len(found["sets"]) == 1:
        rows = next(iter(found["sets"].values()))
    else:
        rows = {**{name: each[MAIN] for name, each in found["sets"].items()}, "mean": found["mean"][MAIN]}
    what = "difference" if len(found["sets"]) == 1 else f"difference of {MAIN}"
    cells = [[name, each["ours"], each["theirs"], *told(each)] for name, each in rows.items()]
    title = f"against {found['with']}; p of a two-sided randomisation test over queries"
    console.table(title, ["", "ours", "theirs", what, "95 % interval", "p"], cells)


def told(each: Mapping[str, float]) -> list[str]:
    least = each["p"] <= 1 / (significance.DRAWS + 1)
    interval = f"{each['low']:+.4f} to {each['high']:+.4f}"
    return [f"{each['difference']:+.4f}", interval, f"{'at most ' if least else ''}{each['p']:.4f}"]
