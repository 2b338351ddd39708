"""InfoNCE over local queries and the passages of all ranks."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bgetrain.distributed import gather_rows
from bgetrain.loss import scores
from bgetrain.loss.known import known_pairs, own_pairs
from bgetrain.loss.scores import Grouped, Scoring, Side, Sides
from bgetrain.loss.teacher import batch_cross_entropy, group_divergence
from bgetrain.types import (
    Contrast,
    Directions,
    LossOutput,
    Negatives,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Teacher,
    World,
)

LARGEST_SCALE = 100.0  # of a learnt temperature; CLIP, Radford et al. 2021, arXiv:2103.00020, section 2.5


def info_nce(
    contrast: Contrast,
    *,
    counts: Sequence[int],
    world: World,
    temperature: PositiveFloat,
    learnable_temperature: bool,
    negatives: Negatives,
    directions: Directions,
    mask_equal: bool,
    mask_margin: float | None,
    matryoshka: Sequence[PositiveInt],
    matryoshka_weights: Sequence[PositiveFloat],
    teacher: Teacher,
    teacher_weight: NonNegativeFloat,
    teacher_temperature: PositiveFloat,
    contrastive_weight: NonNegativeFloat,
    tile: PositiveInt,
) -> LossOutput:
    """Softmax cross-entropy of each query's positive against its negatives (arXiv:1807.03748; C-Pack, section 3).

    Args:
        contrast: embeddings of this rank, and what is known of their texts.
        counts: queries on each rank; `counts[world.rank]` is B.
        world: the ranks whose passages are negatives.
        temperature: tau > 0, unitless; where it is learnt, its first value.
        learnable_temperature: `contrast.shift` moves it, down to 1 / LARGEST_SCALE.
        negatives: world: passages of all ranks; rank: of this rank; group: the query's own G.
        directions: forward: query -> passages; both: the mean of that and positive -> queries (CLIP); joint: one softmax over
            passages and queries as seen from the query and from its positive (GTE, Li et al. 2023, arXiv:2308.03281).
        mask_equal: take out candidates whose text is a positive of the query, or the query itself.
        mask_margin: take out candidates whose cosine similarity exceeds the positive's by more, by the guide where there is one
            (Solatorio 2024, arXiv:2402.16829), else by the model itself; null: none.
        matryoshka: widths of leading parts of the embeddings whose losses are averaged (Kusupati et al. 2022,
            arXiv:2205.13147); empty: D alone.
        matryoshka_weights: of each width's loss; empty: equal.
        teacher: none; group: add the KL divergence to the teacher's softmax over the group; batch: add the cross-entropy of
            every passage of the group, weighted by the teacher (BGE-M3).
        teacher_weight: of the teacher's term, >= 0.
        teacher_temperature: of the teacher's softmax, > 0.
        contrastive_weight: of InfoNCE, >= 0.
        tile: rows and columns of the scores that are held at a time.

    Returns:
        loss: sum over this rank's queries / queries of all ranks; summing gradients over ranks gives the full-batch gradient.
        metrics: `accuracy`, the share of queries whose positive scores highest, in the same form; `masked_negatives`, how
            many (query, passage) pairs were taken out; both at the widest part. The parts of the loss where there are several,
            and the temperature where it is learnt.
        faults: queries whose own loss is not finite.

    Raises:
        ValueError: embeddings that do not fit each other.
    """
    check(contrast, matryoshka)
    total = sum(counts)
    guides = contrast.guide or (None, None)
    own = Sides(Side(contrast.query, guides[0]), Side(contrast.passage, guides[1]))
    scope = world if negatives == "world" else None
    pooled = list(counts) if scope else [len(contrast.query)]
    first = sum(counts[: world.rank]) if scope else 0
    known = (
        known_pairs(contrast.keys, pooled, scope, forward=directions == "forward")
        if mask_equal and contrast.keys
        else own_pairs(len(contrast.query), len(contrast.passage) // len(contrast.query), first)
    )
    pool = own if scope is None else gathered(own, pooled, scope, queries=directions != "forward")
    scale = factor(contrast, temperature)
    scoring = Scoring(scale, known, first, mask_margin, tile)
    score = partial(at_width, negatives=negatives, directions=directions, teacher=teacher, taught=contrast.teacher)

    widths = list(matryoshka) or [contrast.query.shape[1]]
    weights = list(matryoshka_weights) or [1.0] * len(widths)
    loss = contrast.query.new_zeros(())
    metrics: dict[str, Tensor] = {}
    faults: Tensor | None = None
    for width, weight in sorted(zip(widths, weights, strict=True)):
        parts, figures = score(own.at(width), pool.at(width), scoring, teacher_temperature=teacher_temperature)
        rows = contrastive_weight * parts["contrastive_loss"] + teacher_weight * parts.get("teacher_loss", 0.0)
        faults = ~rows.detach().isfinite() if faults is None else faults | ~rows.detach().isfinite()
        loss = loss + rows.sum() * (weight / sum(weights) / total)
        metrics |= figures | {name: part.detach().sum() / total for name, part in parts.items() if len(parts) > 1}
        if matryoshka:
            metrics[f"loss_{width}"] = rows.detach().sum() / total
    metrics["accuracy"] = metrics["accuracy"] / total
    if learnable_temperature:
        metrics["temperature"] = 1 / scale.detach().squeeze() / world.size
    return LossOutput(loss, metrics, faults)


def at_width(
    own: Sides,
    pool: Sides,
    scoring: Scoring,
    *,
    negatives: str,
    directions: str,
    teacher: str,
    taught: Tensor | None,
    teacher_temperature: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each part of the loss, fp32 [B], and sums over this rank's queries for the metrics."""
    group = scores.grouped(own, scoring)
    inside = torch.isneginf(group.kept).sum()
    within = group.kept.logsumexp(1)
    if negatives == "group":
        others, top, hidden = within.new_full(within.shape, -torch.inf), None, inside
    else:
        others, top, outside = scores.strange_passages(own, pool, group, scoring)
        hidden = inside + outside
    parts = {"contrastive_loss": contrastive(own, pool, group, scoring, torch.logaddexp(within, others), directions)}
    if teacher != "none":
        assert taught is not None
        if teacher == "group":
            parts["teacher_loss"] = group_divergence(group.logits, taught, teacher_temperature)
        else:
            parts["teacher_loss"] = batch_cross_entropy(group.logits, others, taught, teacher_temperature)
    best = group.kept.amax(1) if top is None else torch.maximum(group.kept.amax(1), top)
    hits = (group.positive >= best).sum()
    return parts, {"accuracy": hits.float(), "masked_negatives": hidden.float()}


def contrastive(own: Sides, pool: Sides, group: Grouped, scoring: Scoring, forward: Tensor, directions: str) -> Tensor:
    """InfoNCE of each query, fp32 [B], from the log-sum-exp over its passages."""
    if directions == "forward":
        return forward - group.positive
    queries = scores.strange_queries(own, pool, group, scoring)
    if directions == "both":
        return (forward + torch.logaddexp(group.positive, queries)) / 2 - group.positive
    total = torch.logaddexp(forward, queries)  # one by one: between two that are -inf there is no gradient
    for same in scores.same_side(own, pool, group, scoring):
        total = torch.logaddexp(total, same)
    return total - group.positive


def factor(contrast: Contrast, temperature: float) -> Tensor:
    """What similarities are multiplied by, fp32 [1]."""
    fixed = contrast.query.new_ones(1) / temperature
    if contrast.shift is None:
        return fixed
    scale = fixed * contrast.shift.float().exp()
    return scale + (scale.clamp(max=LARGEST_SCALE) - scale).detach()  # at the bound the gradient still leads back


def gathered(own: Sides, counts: Sequence[int], world: World, *, queries: bool) -> Sides:
    """The texts of all ranks; queries stay this rank's where nothing is scored against them."""
    group_size = len(own.passage.rows) // len(own.query.rows)
    sizes = [count * group_size for count in counts]
    rows = partial(gather_rows, world=world)
    guide = None if own.passage.guide is None else rows(own.passage.guide, sizes)
    passage = Side(rows(own.passage.rows, sizes), guide)
    if not queries:
        return Sides(own.query, passage)
    guide = None if own.query.guide is None else rows(own.query.guide, counts)
    return Sides(Side(rows(own.query.rows, counts), guide), passage)


def check(contrast: Contrast, matryoshka: Sequence[int]) -> None:
    """Holds the embeddings against each other.

    Raises:
        ValueError: passages that do not divide over queries.
    """
    queries, passages = len(contrast.query), len(contrast.passage)
    if queries == 0 or passages == 0 or passages % queries:
        raise ValueError(f"{passages} passages cannot be split evenly over {queries} queries")
    assert max(matryoshka, default=1) <= contrast.query.shape[1]
