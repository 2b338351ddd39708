"""examples.json of a training run: how alike the model finds texts that belong together and others, before and after."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bgetrain import distributed, output
from bgetrain.data import tokenize as tokens
from bgetrain.data.held_out import place_of
from bgetrain.logger import console
from bgetrain.sources import Row
from bgetrain.stage import build, retrieval, supply, validation
from bgetrain.types import Ragged, World

FILE = "examples.json"
EDGES = np.linspace(-1, 1, 51)  # of the bars: a similarity is a cosine
LETTERS = 300  # of a text that is shown; our choice, as are the numbers below
MOST = 20  # queries and negatives that are shown

Similarities = Mapping[str, np.ndarray]  # positive, negative and, where there are any, "hard negative" -> [n]


class Hardest(NamedTuple):
    """A negative, and how much more alike than the positive it is to the query."""

    query: str
    positive: str
    negative: str
    positive_score: float
    negative_score: float

    def told(self) -> dict[str, Any]:
        return {name: cut(each) if isinstance(each, str) else rounded(each) for name, each in self._asdict().items()}


def cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 4]} ..."


def rounded(value: float) -> float:
    return round(float(value), 6)


def told(of: str, series: Mapping[str, Similarities], earlier: Mapping[str, Any], hardest: Sequence[Hardest]) -> dict[str, Any]:
    """The file's contents.

    Args:
        of: what was looked at.
        series: before | after -> similarities.
        earlier: what the file has; its other series stay.
        hardest: any order; those that lie most above their positives are told.
    """
    counts, means = (dict(earlier.get(key, {})) for key in ("series", "means"))
    for name, found in series.items():
        each = {kind: np.clip(values, -1, 1) for kind, values in found.items() if len(values)}
        counts[name] = {kind: np.histogram(values, EDGES)[0].tolist() for kind, values in each.items()}
        means[name] = {kind: rounded(values.mean()) for kind, values in each.items()}
    edges = [rounded(each) for each in EDGES]
    facts: dict[str, Any] = {"of": of, "similarity": {"edges": edges, "series": counts}, "means": means}
    ordered = sorted(hardest, key=lambda each: each.positive_score - each.negative_score)
    return facts | ({"hardest_negatives": [each.told() for each in ordered[:MOST]]} if ordered else {})


class Sample(NamedTuple):
    """Rows that the model is held against before and after training.

    Attributes:
        rows: R of them.
        negatives: of each row those that it lists, as many as a group takes.
        sides: tokens of R queries, with their instructions; of R positives and then of all negatives.
        idle: a text that a rank with fewer chunks embeds in their place.
        spare: how often this rank does.
        of: what they are, in words.
    """

    rows: list[Row]
    negatives: list[Sequence[str]]
    sides: list[retrieval.Tokenised]
    idle: Ragged
    spare: int
    of: str


def of_rows(cfg: build.Config, supplied: supply.Supply, subject: validation.Subject, world: World) -> Callable[[str], None]:
    """Draws rows by the seed: held-out ones, where there are some, else ones that are trained on.

    Args:
        cfg: of the stage.
        supplied: its data.
        subject: the model.
        world: all ranks; every one calls this.

    Returns:
        Looks at the model as it is: "before" training or "after"; every rank calls it, and it changes nothing of the model.
    """
    if not cfg["examples"]:
        return lambda moment: None
    sample = sampled(cfg, supplied, subject, world)

    def look(moment: str) -> None:
        with validation.at_rest(subject.module):
            own = retrieval.embedded(
                sample.sides, sample.idle, sample.spare, subject.forward, subject.pad_id, subject.width, world
            )
        queries, passages = (distributed.gather_arrays(each, world) for each in own)
        if world.rank == 0 and np.isfinite(queries).all() and np.isfinite(passages).all():  # else training says what is wrong
            path = Path(cfg["output_dir"]) / FILE
            earlier = known(path, sample.of) if moment == "after" else {}
            found, hardest = compared(sample, queries, passages)
            facts = told(sample.of, {moment: found}, earlier, hardest if moment == "after" else ())
            keep(path, facts)

    return look


def keep(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes the file; what a bad disk refuses is told and ends no run."""
    try:
        output.write(path, json.dumps(facts, ensure_ascii=False, indent=1))
    except OSError as error:
        console.say(f"WARNING: {path} was not written ({error.strerror}): the run goes on without it")


def sampled(cfg: build.Config, supplied: supply.Supply, subject: validation.Subject, world: World) -> Sample:
    """Draws and tokenises rows; the ranks agree on the number of forward passes."""
    feeds = [each.feed for each in supplied.held] or supplied.feeds
    sizes = [each.batches.count for each in supplied.held] or [len(each.rows) for each in feeds]
    ends = np.cumsum(sizes)
    draw = np.random.default_rng(cfg["seed"])
    chosen = np.sort(draw.choice(ends[-1], min(cfg["examples"], int(ends[-1])), replace=False, shuffle=False))
    rows: list[Row] = []
    negatives: list[Sequence[str]] = []
    texts: tuple[list[str], ...] = ([], [], [])  # queries, positives, negatives
    limits: tuple[list[int], ...] = ([], [], [])
    for number, feed in enumerate(feeds):
        places = (chosen[np.searchsorted(ends, chosen, side="right") == number] - (ends[number] - sizes[number])).tolist()
        if supplied.held:
            places = [place_of(each, len(feed.rows), sizes[number]) for each in places]
        for row in feed.rows.take(places):
            prompt = feed.query_instruction if row.prompt is None else row.prompt
            listed = list(row.negatives[: feed.group_size - 1])
            rows.append(row)
            negatives.append(listed)
            for side, words in enumerate(([row.query], [row.positives[0]], listed)):
                with_prompt = side == 0 or feed.symmetric
                texts[side].extend([prompt + each for each in words] if with_prompt else words)
                limits[side].extend([feed.passage_max_len if side else feed.query_max_len] * len(words))

    def tokenised(words: list[str], most: list[int]) -> retrieval.Tokenised:
        own = distributed.share(len(words), world)
        if not own:
            return retrieval.Tokenised(len(words), [])
        text = tokens.tokenize_each(subject.tokenizer, words[own.start : own.stop], most[own.start : own.stop])
        return retrieval.Tokenised(
            len(words), [(text, tokens.cut(text.lengths, cfg["chunk_tokens"], padded=subject.pad_id is not None))]
        )

    sides = [tokenised(texts[0], limits[0]), tokenised(texts[1] + texts[2], limits[1] + limits[2])]
    passes = sum(len(groups) for side in sides for _, groups in side.pieces)
    spare = distributed.max_over_ranks(passes, world) - passes
    idle = tokens.tokenize(subject.tokenizer, ["a"], limits[0][0])
    of = f"{len(rows):,} {'held-out' if supplied.held else 'training'} rows; negatives: passages of the other rows"
    return Sample(rows, negatives, sides, idle, spare, of)


def known(path: Path, of: str) -> dict[str, Any]:
    """What the file has of the same sample, where there is one: the run may have begun in another process."""
    try:
        earlier = json.loads(path.read_text("utf8"))
        same = earlier["of"] == of and set(earlier["similarity"]["series"]["before"]) <= {"positive", "negative", "hard negative"}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return {"series": earlier["similarity"]["series"], "means": earlier["means"]} if same else {}


def compared(sample: Sample, queries: np.ndarray, passages: np.ndarray) -> tuple[Similarities, list[Hardest]]:
    """Every query of a sample against every passage of it.

    Args:
        sample: R rows.
        queries: fp32 [R, D], unit rows.
        passages: fp32 [P, D], R positives first.

    Returns:
        Similarities of the queries with their positives, with passages of the other rows, and with negatives of their own.
        Of each query the negative that is the most alike.
    """
    scores = queries @ passages.T  # [R, P]
    texts = [row.positives[0] for row in sample.rows] + [each for listed in sample.negatives for each in listed]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    columns = np.array([numbers[each] for each in texts])
    relevant, hard = np.zeros(scores.shape, bool), np.zeros(scores.shape, bool)
    for place, (row, listed) in enumerate(zip(sample.rows, sample.negatives, strict=True)):
        for mask, words in ((relevant, row.positives), (hard, listed)):
            mask[place] = np.isin(columns, [numbers[each] for each in words if each in numbers])
    hard &= ~relevant
    positive = scores.diagonal()
    found = {"positive": positive, "negative": scores[~relevant & ~hard], "hard negative": scores[hard]}
    others = np.where(relevant, -np.inf, scores)
    best = others.argmax(1)
    hardest = [
        Hardest(row.query, row.positives[0], texts[at], float(positive[place]), float(others[place, at]))
        for place, (row, at) in enumerate(zip(sample.rows, best.tolist(), strict=True))
        if np.isfinite(others[place, at])
    ]
    return found, hardest
