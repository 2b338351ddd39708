"""Rows to contrastive batches: which positive, which negatives, which tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bgetrain.data.plan import Plan, hashed
from bgetrain.data.tokenize import tokenize
from bgetrain.types import GroupBatch, Row, Rows, Source

POSITIVE, NEGATIVE, STRANGER = 1, 2, 3  # keep the draws of one row apart


def group_batches(
    rows: Rows, source: Source, tokenizer: Any, plan: Plan, part: range, *, group_size: int
) -> Callable[[int], GroupBatch]:
    """Makes this rank's batch of a step, as a function of the step alone.

    Args:
        rows: labelled queries.
        source: their lengths, instruction and rule for missing negatives.
        tokenizer: a fast tokenizer of transformers.
        plan: the order of the rows.
        part: this rank's positions in the global batch.
        group_size: G, passages per query.

    Returns:
        step (from 1) -> GroupBatch.
    """

    def batch(step: int) -> GroupBatch:
        draw = plan.draw(step, part)
        taken = rows.take(draw.rows.tolist())
        queries, passages = [], []
        for row, number, epoch in zip(taken, draw.rows.tolist(), draw.epochs.tolist(), strict=True):
            prompt = source.query_instruction if row.prompt is None else row.prompt
            queries.append(prompt + row.query)
            passages += group(rows, row, number, epoch, group_size, plan.seed)
        return GroupBatch(
            tokenize(tokenizer, queries, source.query_max_len),
            tokenize(tokenizer, passages, source.passage_max_len),
            torch.from_numpy(draw.rows),
            plan.epoch(step),
        )

    return batch


def group(rows: Rows, row: Row, number: int, epoch: int, group_size: int, seed: int) -> list[str]:
    """One positive and `group_size - 1` negatives of a row.

    The positive is drawn by (seed, epoch, row). Negatives follow an order drawn by (seed, row) that goes on from epoch to
    epoch, and begins again where it is used up, so that a row with too few repeats them. A row without any gets passages
    of other rows.
    """
    positive = row.positives[int(hashed(seed, POSITIVE, epoch, number)) % len(row.positives)]
    wanted = group_size - 1
    if not row.negatives:
        return [positive, *strangers(rows, row, number, epoch, wanted, seed)]
    order = np.argsort(hashed(seed, NEGATIVE, number, np.arange(len(row.negatives))), kind="stable")
    places = (epoch * wanted + np.arange(wanted)) % len(order)
    return [positive, *(row.negatives[order[place]] for place in places)]


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


def check_groups(rows: Rows, source: Source, group_size: int, say: Callable[[str], None]) -> None:
    """Holds `group_size` against the negatives that the rows have, and says what will be done about too few.

    Looks at the first 1,000 rows.

    Raises:
        ValueError: a row has no negatives and `missing_negatives` is refuse.
    """
    if group_size == 1:
        return
    wanted = group_size - 1
    sample: Sequence[int] = range(min(1000, len(rows)))
    counts = [len(row.negatives) for row in rows.take(sample)]
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
