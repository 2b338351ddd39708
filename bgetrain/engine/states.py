"""What optimizers, parameters and losses hold, under deepspeed's wrappers (0.19.8) as without."""

from typing import Any

import torch
from torch import Tensor, nn


def inner_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside deepspeed's wrapper."""
    return optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer


def link_states(optimizer: Any) -> None:
    """Lets `safe_get_full_optimizer_state` find every state.

    ZeRO-1 and 2 link them after the first parameter group's first step, when those of later groups do not exist yet.
    """
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def moment_names(optimizer: Any) -> list[str]:
    """Names of the states that a torch optimizer keeps for each element of a parameter."""
    held: dict[str, Any] = next(iter(optimizer.state.values()), {})
    return [name for name, value in held.items() if isinstance(value, Tensor) and not is_counter(value)]


def is_counter(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)


def on_host(tensor: Tensor) -> Tensor:
    """A copy in fp32."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """The whole shape, also where ZeRO-3 holds a part."""
    return getattr(parameter, "ds_shape", parameter.shape)


def local_norm(module: nn.Module) -> float:
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def spreading(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, with a gradient that is not finite either: the update is then left out on all ranks."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
