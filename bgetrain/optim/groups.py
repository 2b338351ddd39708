"""Which parameters decay."""

from collections.abc import Iterable
from typing import Any

from torch.nn import Parameter


def decay_groups(named_parameters: Iterable[tuple[str, Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases and norm weights, which are vectors, without."""
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    matrices = [parameter for _, parameter in trained if parameter.ndim > 1]
    vectors = [parameter for _, parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
