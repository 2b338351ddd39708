"""AdamW with the field's parameter groups."""

from collections.abc import Iterable
from functools import partial

import torch
from torch.nn import Parameter

from bgetrain.optim.groups import decay_groups
from bgetrain.optim.schedule import Schedule, linear
from bgetrain.types import NonNegativeFloat, PositiveFloat, Ratio


def adamw(
    named_parameters: Iterable[tuple[str, Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Ratio, Ratio],
    eps: PositiveFloat,
    warmup_ratio: Ratio,
) -> tuple[torch.optim.Optimizer, Schedule]:
    """AdamW (arXiv:1711.05101).

    Args:
        named_parameters: those to train.
        lr: the peak; the schedule scales it.
        weight_decay: of matrices; biases and norms have none.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        warmup_ratio: share of steps with rising lr.

    Returns:
        The optimizer, and the factor of lr at a step.
    """
    optimizer = torch.optim.AdamW(decay_groups(named_parameters, weight_decay), lr=lr, betas=(betas[0], betas[1]), eps=eps)
    return optimizer, partial(linear, warmup_ratio=warmup_ratio)
