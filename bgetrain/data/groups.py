"""Rows to contrastive batches: which positive, which negatives, which tokens."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bgetrain.data.order import hashed
from bgetrain.data.plan import Draw
from bgetrain.data.tokenize import tokenize_each
from bgetrain.sources import Row, Rows
from bgetrain.types import GroupBatch, Ragged, TextKeys

POSITIVE, NEGATIVE, STRANGER = 1, 2, 3  # keep the draws of one row apart
FRESH = 10  # attempts to find strangers that differ, before one may come again


class Feed(NamedTuple):
    """Rows of one source, and what a contrastive batch takes of them.

    Attributes:
        name: of the source, for messages and metrics.
        rows: labelled queries.
        query_max_len: tokens of a query with its instruction and special tokens.
        passage_max_len: the same of a passage.
        query_instruction: put before a query whose row has no prompt.
        missing_negatives: random | refuse, where a row has none.
        group_size: G, passages per query.
        keyed: with the keys by which equal texts are found.
        scored: with the teacher's scores of the passages.
        symmetric: passages are of the queries' kind: the instruction is put before them as well.
    """

    name: str
    rows: Rows
    query_max_len: int
    passage_max_len: int
    query_instruction: str
    missing_negatives: str
    group_size: int
    keyed: bool
    scored: bool
    symmetric: bool


class Drawn(Protocol):
    """Which rows each step takes: those of training, by a `Plan`, or those that are held out.

    Attributes:
        seeds: of each feed, for what is drawn of a row.
    """

    seeds: list[int]

    def size(self, step: int) -> int:
        """Rows of the global batch."""

    def draw(self, step: int, part: range) -> Draw:
        """Rows at the places `part` of it."""

    def source(self, step: int) -> int | None:
        """The source of all its rows; None where they come from several."""

    def epoch(self, step: int) -> float:
        """Passes over the data completed before it."""


def group_batch(
    feeds: Sequence[Feed], tokenizer: Any, guide: Any, plan: Drawn, part: Callable[[int], range], step: int
) -> GroupBatch:
    """This rank's batch of a step: a function of the step alone.

    Args:
        feeds: one for each stream of the plan; where batches are mixed, alike in group_size, keyed, scored and symmetric.
        tokenizer: a fast tokenizer of transformers.
        guide: the guide model's tokenizer; None: no guide.
        plan: the order of the rows.
        part: size of a global batch -> this rank's positions in it.
        step: from 1.

    Raises:
        ValueError: a row lacks the teacher's scores, or nothing stands in for its negatives.
    """
    size = plan.size(step)
    draw = plan.draw(step, part(size))
    places, taken = draw.sources.tolist(), rows_of(feeds, draw)
    queries: list[str] = []
    passages: list[str] = []
    plain: list[str] = []  # without instruction: by which equal texts are found
    scores: list[list[float]] = []
    for place, row, number, epoch in zip(places, taken, draw.rows.tolist(), draw.epochs.tolist(), strict=True):
        feed = feeds[place]
        prompt = feed.query_instruction if row.prompt is None else row.prompt
        queries.append(prompt + row.query)
        found = group(feed.rows, row, number, epoch, feed.group_size, plan.seeds[place])
        plain += found.passages
        passages += [prompt + each for each in found.passages] if feed.symmetric else found.passages
        if feed.scored and found.scores is None:
            raise lack_of_scores(feed.rows, number, feed.group_size)
        scores.append(found.scores or [])
    first, limits = feeds[places[0]], [feeds[place] for place in places]

    def tokens(words: Any) -> tuple[Ragged, Ragged]:
        passage_limits = [each.passage_max_len for each in limits for _ in range(first.group_size)]
        return tokenize_each(words, queries, [each.query_max_len for each in limits]), tokenize_each(
            words, passages, passage_limits
        )

    return GroupBatch(
        *tokens(tokenizer),
        text_keys(taken, plain) if first.keyed else None,
        torch.tensor(scores, dtype=torch.float32) if first.scored else None,
        None if guide is None else tokens(guide),
        torch.from_numpy(draw.sources),
        torch.from_numpy(draw.rows),
        size,
        plan.source(step),
        plan.epoch(step),
    )


def rows_of(feeds: Sequence[Feed], draw: Draw) -> list[Row]:
    """The rows that were drawn, in their order."""
    taken: list[Any] = [None] * len(draw.rows)
    for number in np.unique(draw.sources).tolist():
        places = np.flatnonzero(draw.sources == number)
        for place, row in zip(places.tolist(), feeds[number].rows.take(draw.rows[places].tolist()), strict=True):
            taken[place] = row
    return taken


class Group(NamedTuple):
    """A positive and its negatives, with a teacher's scores where the row has them for all."""

    passages: list[str]
    scores: list[float] | None


def group(rows: Rows, row: Row, number: int, epoch: int, group_size: int, seed: int) -> Group:
    """One positive and `group_size - 1` negatives of a row.

    The positive is drawn by (seed, epoch, row). Negatives follow an order drawn by (seed, row) that goes on from epoch to
    epoch, and begins again where it is used up, so that a row with too few repeats them. A row without any gets passages
    of other rows.
    """
    chosen = int(hashed(seed, POSITIVE, epoch, number)) % len(row.positives)
    positive = row.positives[chosen]
    wanted = group_size - 1
    if wanted and not row.negatives:
        return Group([positive, *strangers(rows, row, number, epoch, wanted, seed)], None)
    places: list[int] = []
    if wanted:
        order = np.argsort(hashed(seed, NEGATIVE, number, np.arange(len(row.negatives))), kind="stable")
        places = order[(epoch * wanted + np.arange(wanted)) % len(order)].tolist()
    scores = None
    if row.positive_scores is not None and (row.negative_scores is not None or not wanted):
        scores = [row.positive_scores[chosen], *((row.negative_scores or [])[place] for place in places)]
    return Group([positive, *(row.negatives[place] for place in places)], scores)


def lack_of_scores(rows: Rows, number: int, group_size: int) -> ValueError:
    return ValueError(
        f"{rows.where(number)}: has no pos_scores and neg_scores for the {group_size} passages of its group, which loss.teacher "
        f"needs: add them, or use loss.teacher=none"
    )


def text_keys(taken: Sequence[Row], passages: Sequence[str]) -> TextKeys:
    """Keys of the queries, of their groups' passages and of all positives that the rows list."""
    listed = [positive for row in taken for positive in row.positives]
    counts = torch.tensor([len(row.positives) for row in taken])
    return TextKeys(keys([row.query for row in taken]), keys(passages), Ragged(keys(listed), counts))


def keys(texts: Sequence[str]) -> Tensor:
    """int64 [N]: 64 bits of BLAKE2b of each text, blanks at its ends aside."""
    digests = b"".join(blake2b(text.strip().encode(), digest_size=8).digest() for text in texts)
    return torch.from_numpy(np.frombuffer(digests, np.int64).copy())


def strangers(rows: Rows, row: Row, number: int, epoch: int, wanted: int, seed: int) -> list[str]:
    """Positives of other rows, none of them a positive of this one, and none twice while others are found."""
    found: list[str] = []
    attempt = 0
    while len(found) < wanted and attempt < 100:
        others = hashed(seed, STRANGER, epoch, number, attempt * wanted + np.arange(wanted)) % np.uint64(len(rows))
        for other in rows.take(others.astype(np.int64).tolist()):
            again = attempt < FRESH and other.positives[0] in found
            if other.positives[0] not in row.positives and not again and len(found) < wanted:
                found.append(other.positives[0])
        attempt += 1
    if len(found) < wanted:
        raise ValueError(f"{rows.where(number)}: found no passage of another row to stand in as a negative; set group_size=1")
    return found


def check_groups(feed: Feed, say: Callable[[str], None]) -> None:
    """Holds `group_size` against the negatives that the rows have, and says what will be done about too few.

    Looks at the first 1,000 rows.

    Raises:
        ValueError: a row has no negatives and `missing_negatives` is refuse, or a row that must has no teacher's scores.
    """
    rows, wanted = feed.rows, feed.group_size - 1
    sample: Sequence[int] = range(min(1000, len(rows)))
    taken = rows.take(sample) if feed.scored or wanted else []
    for number, row in zip(sample, taken, strict=False):
        if feed.scored and (row.positive_scores is None or (wanted and not row.negative_scores)):
            raise lack_of_scores(rows, number, feed.group_size)
    if not wanted:
        return
    counts = [len(row.negatives) for row in taken]
    without = [number for number, count in zip(sample, counts, strict=True) if count == 0]
    if without and feed.missing_negatives == "refuse":
        raise ValueError(
            f"{rows.where(without[0])}: group_size={feed.group_size} needs negatives and this row has none: "
            f"mine some with stage=mine, or set group_size=1 or data.missing_negatives=random"
        )
    of = f"of the first {len(counts)} rows of {feed.name}"
    if without:
        say(f"{len(without)} {of} have no negatives: random passages of other rows stand in")
    short = [count for count in counts if 0 < count < wanted]
    if short:
        say(
            f"{len(short)} {of} have fewer than the {wanted} negatives of group_size={feed.group_size} "
            f"(the fewest {min(short)}): theirs are repeated"
        )
