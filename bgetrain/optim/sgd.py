"""SGD, whose update shows the gradient as it is."""

from collections.abc import Iterable
from functools import partial

import torch
from torch.nn import Parameter

from bgetrain.optim.groups import decay_groups
from bgetrain.optim.schedule import Schedule, linear
from bgetrain.types import NonNegativeFloat, PositiveFloat, Ratio


def sgd(
    named_parameters: Iterable[tuple[str, Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    momentum: Ratio,
    warmup_ratio: Ratio,
) -> tuple[torch.optim.Optimizer, Schedule]:
    """Stochastic gradient descent; arguments and results as for `adamw`."""
    optimizer = torch.optim.SGD(decay_groups(named_parameters, weight_decay), lr=lr, momentum=momentum)
    return optimizer, partial(linear, warmup_ratio=warmup_ratio)
