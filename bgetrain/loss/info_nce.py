"""InfoNCE over local queries and the passages of all ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bgetrain.distributed import gather_rows
from bgetrain.types import LossOutput, Negatives, PositiveFloat, World


def info_nce(
    query: Tensor,
    passage: Tensor,
    *,
    counts: Sequence[int],
    world: World,
    temperature: PositiveFloat,
    negatives: Negatives,
) -> LossOutput:
    """Softmax cross-entropy of each query's positive against its negatives (arXiv:1807.03748; C-Pack, section 3).

    Args:
        query: fp32 [B, D], unit rows.
        passage: fp32 [B * G, D], unit rows; row b * G is the positive of query b.
        counts: queries on each rank; `counts[world.rank]` is B.
        world: the ranks whose passages are negatives.
        temperature: tau > 0, unitless.
        negatives: world: passages of all ranks; rank: of this rank; group: the query's own G.

    Returns:
        loss: sum over this rank's queries / queries of all ranks; summing gradients over ranks gives the full-batch gradient.
        metrics: accuracy, the share of queries whose positive scores highest, in the same form.
        faults: queries whose own loss is not finite.
    """
    total = sum(counts)
    if len(query) * total == 0 or len(passage) % len(query):
        raise ValueError(f"{len(passage)} passages cannot be split evenly over {len(query)} queries")
    group_size = len(passage) // len(query)
    own = torch.arange(len(query), device=query.device)
    if negatives == "group":
        scores = torch.einsum("bd,bgd->bg", query, passage.view(len(query), group_size, -1))  # [B, G]
        targets = torch.zeros_like(own)
    else:
        candidates, first = passage, 0
        if negatives == "world":
            candidates = gather_rows(passage, [count * group_size for count in counts], world)  # [P, D]
            first = sum(counts[: world.rank])
        scores = query @ candidates.T  # [B, P]
        targets = (first + own) * group_size
    losses = F.cross_entropy(scores / temperature, targets, reduction="none")  # [B]
    with torch.no_grad():
        hits = (scores.argmax(1) == targets).sum() / total
    return LossOutput(losses.sum() / total, {"accuracy": hits}, ~losses.detach().isfinite())
