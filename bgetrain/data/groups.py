"""Rows to contrastive batches: which positive, which negatives, which tokens."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgetrain.data.plan import Plan, hashed
from bgetrain.data.tokenize import tokenize
from bgetrain.types import GroupBatch, Ragged, Row, Rows, Source, TextKeys

POSITIVE, NEGATIVE, STRANGER = 1, 2, 3  # keep the draws of one row apart


def group_batches(
    rows: Rows, source: Source, tokenizer: Any, plan: Plan, part: range, *, group_size: int, keyed: bool, scored: bool, guide: Any
) -> Callable[[int], GroupBatch]:
    """Makes this rank's batch of a step, as a function of the step alone.

    Args:
        rows: labelled queries.
        source: their lengths, instruction and rule for missing negatives.
        tokenizer: a fast tokenizer of transformers.
        plan: the order of the rows.
        part: this rank's positions in the global batch.
        group_size: G, passages per query.
        keyed: with the keys by which equal texts are found.
        scored: with the teacher's scores of the passages.
        guide: the guide model's tokenizer; None: no guide.

    Returns:
        step (from 1) -> GroupBatch.
    """

    def batch(step: int) -> GroupBatch:
        draw = plan.draw(step, part)
        taken = rows.take(draw.rows.tolist())
        queries: list[str] = []
        passages: list[str] = []
        scores: list[list[float]] = []
        for row, number, epoch in zip(taken, draw.rows.tolist(), draw.epochs.tolist(), strict=True):
            prompt = source.query_instruction if row.prompt is None else row.prompt
            queries.append(prompt + row.query)
            found = group(rows, row, number, epoch, group_size, plan.seed)
            passages += found.passages
            if scored and found.scores is None:
                raise lack_of_scores(rows, number, group_size)
            scores.append(found.scores or [])

        def tokens(words: Any) -> tuple[Ragged, Ragged]:
            return tokenize(words, queries, source.query_max_len), tokenize(words, passages, source.passage_max_len)

        return GroupBatch(
            *tokens(tokenizer),
            text_keys(taken, passages) if keyed else None,
            torch.tensor(scores, dtype=torch.float32) if scored else None,
            None if guide is None else tokens(guide),
            torch.from_numpy(draw.rows),
            plan.epoch(step),
        )

    return batch


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
    """Positives of other rows, none of them a positive of this one."""
    found: list[str] = []
    attempt = 0
    while len(found) < wanted and attempt < 100:
        others = hashed(seed, STRANGER, epoch, number, attempt * wanted + np.arange(wanted)) % np.uint64(len(rows))
        for other in rows.take(others.astype(np.int64).tolist()):
            if other.positives[0] not in row.positives and len(found) < wanted:
                found.append(other.positives[0])
        attempt += 1
    if len(found) < wanted:
        raise ValueError(f"{rows.where(number)}: found no passage of another row to stand in as a negative; set group_size=1")
    return found


def check_groups(rows: Rows, source: Source, group_size: int, scored: bool, say: Callable[[str], None]) -> None:
    """Holds `group_size` against the negatives that the rows have, and says what will be done about too few.

    Looks at the first 1,000 rows.

    Raises:
        ValueError: a row has no negatives and `missing_negatives` is refuse, or a row that must has no teacher's scores.
    """
    wanted = group_size - 1
    sample: Sequence[int] = range(min(1000, len(rows)))
    taken = rows.take(sample) if scored or wanted else []
    for number, row in zip(sample, taken, strict=False):
        if scored and (row.positive_scores is None or (wanted and not row.negative_scores)):
            raise lack_of_scores(rows, number, group_size)
    if not wanted:
        return
    counts = [len(row.negatives) for row in taken]
    without = [number for number, count in zip(sample, counts, strict=True) if count == 0]
    if without and source.missing_negatives == "refuse":
        raise ValueError(
            f"{rows.where(without[0])}: group_size={group_size} needs negatives and this row has none: "
            f"mine some with stage=mine, or set group_size=1 or data.missing_negatives=random"
        )
    if without:
        say(f"{len(without)} of the first {len(counts)} rows have no negatives: random passages of other rows stand in")
    short = [count for count in counts if 0 < count < wanted]
    if short:
        say(
            f"{len(short)} of the first {len(counts)} rows have fewer than the {wanted} negatives of group_size={group_size} "
            f"(the fewest {min(short)}): theirs are repeated"
        )
