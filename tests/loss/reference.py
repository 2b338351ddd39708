"""The contrastive loss written out: one query, one candidate at a time."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Texts of a whole batch are numbers; equal numbers are equal texts."""

    queries: list[int]
    groups: list[list[int]]  # the positive first
    listed: list[list[int]]  # all positives of each row
    teacher: Tensor | None = None  # [B, G]
    guide: tuple[Tensor, Tensor] | None = None  # [B, D'], [B * G, D']


def known(batch: Batch, query: int) -> set[int]:
    """Texts that are no negatives of a query."""
    texts = {batch.queries[query]}
    for other, text in enumerate(batch.queries):
        if text == batch.queries[query]:
            texts |= set(batch.listed[other])
    return texts


def total(values: list[Tensor]) -> Tensor:
    return torch.stack(values).exp().sum()


def losses(
    query: Tensor, passage: Tensor, batch: Batch, pools: list[list[int]], *, temperature: float, directions: str = "forward",
    mask_equal: bool = True, mask_margin: float | None = None, teacher: str = "none", teacher_weight: float = 1.0,
    teacher_temperature: float = 1.0, contrastive_weight: float = 1.0, group_only: bool = False,
) -> tuple[Tensor, int]:  # fmt: skip
    """Loss of each query, and how many pairs of query and passage were left out.

    Args:
        pools: the queries that each query is scored together with.
    """
    size = len(batch.groups[0])
    rows, masked = [], 0
    vectors = {"query": query, "passage": passage}
    judges = vectors if batch.guide is None else dict(zip(vectors, batch.guide, strict=True))

    def cosine(here: dict[str, Tensor], one: tuple[str, int], other: tuple[str, int]) -> Tensor:
        return here[one[0]][one[1]] @ here[other[0]][other[1]]

    for b, pool in enumerate(pools):
        me, mine = ("query", b), ("passage", b * size)
        positive = cosine(vectors, me, mine) / temperature

        def too_good(one, other, me=me, mine=mine) -> bool:
            bar = cosine(judges, me, mine)
            return mask_margin is not None and bool(cosine(judges, one, other) > bar + mask_margin)

        kept, others = [], []
        for other in [b] if group_only else pool:
            for place, text in enumerate(batch.groups[other]):
                candidate = ("passage", other * size + place)
                if candidate == mine:
                    kept.append(positive)
                    continue
                if (mask_equal and text in known(batch, b)) or too_good(me, candidate):
                    masked += 1
                    continue
                kept.append(cosine(vectors, me, candidate) / temperature)
                if other != b:
                    others.append(kept[-1])
        forward = total(kept).log() - positive
        parts = {"ahead": total(kept)}
        if directions != "forward":
            found: dict[str, list[Tensor]] = {"back": [], "queries": [], "positives": []}
            for other in pool:
                if other == b:
                    continue
                you, yours = ("query", other), ("passage", other * size)
                same = batch.queries[other] == batch.queries[b]
                back = same or batch.groups[b][0] in known(batch, other)
                queries = same or batch.queries[other] in known(batch, b)
                positives = batch.groups[other][0] in known(batch, b) | {batch.groups[b][0]}
                for name, one, two, equal in (
                    ("back", mine, you, back), ("queries", me, you, queries), ("positives", mine, yours, positives)
                ):  # fmt: skip
                    if not (mask_equal and equal) and not too_good(one, two):
                        found[name].append(cosine(vectors, one, two) / temperature)
            if directions == "both":
                forward = (forward + total([positive, *found["back"]]).log() - positive) / 2
            else:
                parts |= {name: total(values) for name, values in found.items() if values}
                forward = sum(parts.values()).log() - positive
        row = contrastive_weight * forward
        if teacher != "none":
            own = torch.stack([cosine(vectors, me, ("passage", b * size + place)) for place in range(size)]) / temperature
            weights = torch.softmax(batch.teacher[b].to(own) / teacher_temperature, 0)
            if teacher == "group":
                row = row + teacher_weight * (weights * (weights.log() - torch.log_softmax(own, 0))).sum()
            else:
                for place in range(size):
                    left = total([*own[place:], *others])
                    row = row + teacher_weight * weights[place] * (left.log() - own[place])
        rows.append(row)
    assert math.isfinite(float(sum(row.detach() for row in rows)))
    return torch.stack(rows), masked
