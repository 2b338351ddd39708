"""What mining did, in figures and in examples to read; the same for any number of ranks."""

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

SAMPLE = 10_000  # queries whose scores are kept for quantiles and histograms
EXAMPLES = 20  # of them with their texts
CHARACTERS = 300  # of a text shown
SHOWN = 3  # positives of an example
AT_RANDOM, OWN = -1, -2  # in place of a rank
COUNTS = ("rows", "short", "negatives", "filled", "own_negatives", "own_negatives_left_out", "candidates")


class Mined(NamedTuple):
    """One query with its negatives.

    Attributes:
        name: of the query.
        row: as it is written.
        positive_scores: of each of the row's positives.
        negative_scores: of each of its negatives.
        ranks: of each negative, where the model ranks it, from 0; AT_RANDOM: it was drawn from beyond the ranking; OWN: the
            row's own.
    """

    name: str
    row: Mapping[str, Any]
    positive_scores: Sequence[float]
    negative_scores: Sequence[float]
    ranks: Sequence[int]


class Audit:
    """Counts, and a sample of queries by a hash of (seed, query name); memory does not grow with the queries."""

    def __init__(self, seed: int) -> None:
        self.start = blake2b(json.dumps([seed, "audit"]).encode(), digest_size=8)
        self.counts, self.dropped = Counter({name: 0 for name in COUNTS}), Counter[str]()
        self.sample: list[tuple[int, str, Any]] = []  # heap of (-hash, query name, scores), the largest hash on top
        self.examples: list[tuple[int, str, Any]] = []

    def add(self, mined: Mined, number: int) -> None:
        """Takes note of a query; `number` negatives were asked for."""
        of_rules = sum(rank != OWN for rank in mined.ranks)
        self.counts["rows"] += 1
        self.counts["negatives"] += len(mined.ranks)
        self.counts["short"] += of_rules < number
        self.counts["filled"] += sum(rank == AT_RANDOM for rank in mined.ranks)
        self.counts["own_negatives"] += sum(rank == OWN for rank in mined.ranks)
        state = self.start.copy()
        state.update(mined.name.encode())
        key = -int.from_bytes(state.digest(), "big")
        scores = [list(map(float, mined.positive_scores)), list(map(float, mined.negative_scores))]
        keep(self.sample, (key, mined.name, scores), SAMPLE)
        keep(self.examples, (key, mined.name, mined._asdict()), EXAMPLES)

    def add_counts(self, counts: Mapping[str, int], dropped: Mapping[str, int]) -> None:
        """Takes note of some queries' candidates, of their rows' own negatives, and of what the rules dropped."""
        self.counts.update(counts)
        self.dropped.update(dropped)

    def dump(self) -> str:
        """All of it as text, for `merge`."""
        return json.dumps([self.counts, self.dropped, self.sample, self.examples])


def keep(heap: list[tuple[int, str, Any]], item: tuple[int, str, Any], size: int) -> None:
    """Adds to a heap of the `size` largest; keys and names are never both equal."""
    if len(heap) < size:
        heapq.heappush(heap, item)
    elif item[:2] > heap[0][:2]:
        heapq.heapreplace(heap, item)


def merge(dumped: Iterable[str], seed: int) -> Audit:
    """One audit of those of all ranks."""
    whole = Audit(seed)
    for text in dumped:
        counts, dropped, sample, examples = json.loads(text)
        whole.counts.update(counts)
        whole.dropped.update(dropped)
        for item in sample:
            keep(whole.sample, tuple(item), SAMPLE)
        for item in examples:
            keep(whole.examples, tuple(item), EXAMPLES)
    return whole


def scores_of(audit: Audit) -> dict[str, np.ndarray]:
    """Positive and negative scores of the sampled queries, in order of their hashes."""
    ordered = sorted(audit.sample, key=lambda item: item[:2], reverse=True)
    series = ("positives", "negatives")
    return {name: np.array([score for *_, pair in ordered for score in pair[at]]) for at, name in enumerate(series)}


def figures(audit: Audit) -> dict[str, Any]:
    """For `result.json`: counts, shares, and quantiles of the sampled queries' scores.

    `dropped_ratio` is the share of all candidates (places of a window, and passages drawn to fill) that a rule dropped.
    """
    counts = audit.counts
    rows = max(1, counts["rows"])
    quantiles = {
        name: {f"p{share}": round(float(np.percentile(values, share)), 6) for share in (5, 25, 50, 75, 95)} if len(values) else {}
        for name, values in scores_of(audit).items()
    }
    return {
        "rows": counts["rows"],
        "negatives_per_row": counts["negatives"] / rows,
        "rows_short_of_negatives": counts["short"],
        "audit": {
            "short_ratio": counts["short"] / rows,
            "filled": counts["filled"],
            "own_negatives_kept": counts["own_negatives"],
            "own_negatives_left_out": counts["own_negatives_left_out"],
            "candidates": counts["candidates"],
            "dropped_ratio": {name: count / max(1, counts["candidates"]) for name, count in sorted(audit.dropped.items())},
            "scores": quantiles,
        },
    }


def examples(audit: Audit) -> str:
    """The sampled examples as Markdown."""
    parts = [f"# {len(audit.examples)} of {audit.counts['rows']:,} mined rows, drawn at random\n"]
    for _, name, mined in sorted(audit.examples, key=lambda item: item[:2], reverse=True):
        row = mined["row"]
        parts.append(f"## {shown(row.get('prompt', '') + row['query'])}\n\nquery {name}\n")
        positives = list(zip(row["pos"], mined["positive_scores"], strict=True))
        parts += [f"- positive, {score:.4f}: {shown(text)}" for text, score in positives[:SHOWN]]
        parts += [f"- and {len(positives) - SHOWN} more positives"] if len(positives) > SHOWN else []
        for text, score, rank in zip(row["neg"], mined["negative_scores"], mined["ranks"], strict=True):
            whence = {AT_RANDOM: "at random", OWN: "the row's own"}.get(rank, f"rank {rank}")
            parts.append(f"- negative, {score:.4f}, {whence}: {shown(text)}")
        parts.append("")
    return "\n".join(parts)


def shown(text: str) -> str:
    """A text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= CHARACTERS else f"{line[:CHARACTERS]} ..."
