"""DeepSpeed ZeRO 0-3 behind a few verbs; the only file that imports deepspeed."""

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bgetrain.engine import scaler
from bgetrain.engine.checkpoint import MOMENT, whole_name
from bgetrain.engine.commit import shared_out
from bgetrain.engine.keys import check_keys
from bgetrain.engine.states import (
    inner_optimizer,
    is_counter,
    link_states,
    local_norm,
    moment_names,
    on_host,
    shape_of,
    spreading,
)
from bgetrain.progress import moved
from bgetrain.types import NonNegativeFloat, TrainState, World

logging.disable(logging.WARNING)  # importing deepspeed warns that a CPU is a CPU
import deepspeed  # noqa: E402
from deepspeed.runtime.config import DeepSpeedConfigError  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

logging.disable(logging.NOTSET)
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # deepspeed calls older names
# on a CPU deepspeed would compile a shared-memory all-reduce, which needs g++, ninja and over a minute
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None  # which prints 18 lines into the user's terminal


class Engine:
    """A module that trains under DeepSpeed; every method is called on all ranks in the same order.

    Args:
        core: what `deepspeed.initialize` returned.
        world: all ranks.
        zero_stage: 0 to 3.
    """

    def __init__(self, core: Any, world: World, zero_stage: int) -> None:
        self.core, self.world, self.zero_stage = core, world, zero_stage
        self.peaks = [group["lr"] for group in core.optimizer.param_groups]

    def forward(self, *arguments: Any) -> Any:
        """Calls the module."""
        moved()
        return self.core(*arguments)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradient of `loss`, whose sum over ranks is the global loss.

        Args:
            loss: fp32 scalar.
            last: no backward follows before `step`.
        """
        moved()
        self.core.set_gradient_accumulation_boundary(last)
        self.core.backward(spreading(loss) * self.world.size)  # deepspeed averages over ranks, our losses add up

    def step(self) -> float:
        """Clips, updates and clears; returns the gradient's 2-norm over all parameters, before clipping.

        Where that is not finite, nothing was updated. 0 where fp16's loss scaler skipped the update because of an overflow,
        which is how it finds its scale.
        """
        moved()
        norm = local_norm(self.core.module) if self.zero_stage == 0 else None
        if norm is not None and not math.isfinite(norm):
            self.core.zero_grad()
            return norm
        self.core.step()  # from ZeRO-1 on it looks for itself
        if self.core.fp16_enabled() and getattr(self.core.optimizer, "overflow", False):
            return 0.0
        return float(self.core.get_global_grad_norm() if norm is None else norm)

    def skipped_steps(self) -> int | None:
        """Updates that fp16's loss scaler has skipped since the run began; None in another precision."""
        return int(self.core.skipped_steps) if self.core.fp16_enabled() else None

    def set_rate(self, factor: float) -> None:
        """Sets the learning rate to `factor` times its peak; `rate` tells it."""
        for group, peak in zip(self.core.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def rate(self) -> float:
        """The learning rate of the coming step."""
        return float(self.core.optimizer.param_groups[0]["lr"])

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: each for name, each in self.core.module.named_parameters() if each.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """All trained parameters, whole, in fp32, on the host; the same on every rank."""
        return {name: on_host(self.whole(each, "")) for name, each in self.trained().items()}

    def state(self, step: int) -> TrainState:
        """What a checkpoint holds: of the tensors this rank's part, on the host; independent of world size and ZeRO stage."""
        inner = inner_optimizer(self.core.optimizer)
        held: dict[str, Any] = next(iter(inner.state.values()), {})
        counters = {name: float(value) for name, value in held.items() if is_counter(value)}
        moments = moment_names(inner)
        if moments:  # there are none where fp16 has skipped every update so far
            link_states(self.core.optimizer)
        trained = self.trained()
        names = [(name, key) for name in trained for key in ("", *moments)]
        sizes = {whole_name(*each): shape_of(trained[each[0]]).numel() for each in names}
        own = set(shared_out(sizes, self.world.size)[self.world.rank])
        tensors = {}
        for name, key in names:
            whole = self.whole(trained[name], key)  # above ZeRO-0 all ranks take part
            if whole_name(name, key) in own:
                tensors[whole_name(name, key)] = on_host(whole).view(shape_of(trained[name]))
        random = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.world.device)
        return TrainState(step, tensors, counters, scaler.read(self.core), random)

    def whole(self, parameter: nn.Parameter, key: str) -> Tensor:
        """A parameter, or a state that the optimizer keeps of it, as all ranks hold it together; `key` is "" for itself."""
        if self.zero_stage == 0:
            found = inner_optimizer(self.core.optimizer).state[parameter][key] if key else parameter
            return found.detach()
        return safe_get_full_optimizer_state(parameter, key) if key else safe_get_full_fp32_param(parameter)

    def load(self, state: TrainState, probe: Callable[[], Tensor]) -> None:
        """Takes over a state saved under any world size and ZeRO stage.

        Args:
            state: of the same parameters.
            probe: a forward pass that reaches every parameter; one step at learning rate 0 makes deepspeed create the
                optimizer states, which are then overwritten.

        Raises:
            ValueError: the state is of another model or another optimizer.
        """
        self.check(state)
        groups = self.core.optimizer.param_groups
        kept = [(group["lr"], group["weight_decay"]) for group in groups]
        for group in groups:
            group["lr"], group["weight_decay"] = 0.0, 0.0
        self.backward(probe() * 0.0, last=True)
        self.core.step()
        for group, (rate, decay) in zip(groups, kept, strict=True):
            group["lr"], group["weight_decay"] = rate, decay
        inner = inner_optimizer(self.core.optimizer)
        link_states(self.core.optimizer)
        saved = sorted({name.partition(MOMENT)[2] for name in state.tensors if MOMENT in name})
        skipped_all = not saved and state.scaler is not None
        if saved != sorted(moment_names(inner)) and not skipped_all:
            raise ValueError(
                f"the checkpoint of step {state.step} holds the optimizer states {saved}, but this optimizer has "
                f"{sorted(moment_names(inner))}: use the same optim= as before, or resume=never"
            )
        for name, each in self.trained().items():
            self.overwrite(each, state.tensors[name].to(self.world.device))
            for key in saved:
                value = state.tensors[whole_name(name, key)]
                if self.zero_stage == 0:
                    inner.state[each][key].copy_(value)
                elif self.zero_stage == 3:
                    safe_set_local_optimizer_state(each, self.partition(each, value.to(self.world.device)), key)
                else:
                    safe_set_full_optimizer_state(each, value.to(self.world.device), key)
        for held in inner.state.values():
            for key, count in state.counters.items():
                held[key] = torch.full_like(held[key], count) if isinstance(held.get(key), Tensor) else count
            if skipped_all:  # as before the first update: the step above has moved the counters on, and left zeros
                held.update({key: value * 0 for key, value in held.items() if is_counter(value)})
        scaler.write(self.core, state.scaler)
        if "cpu" in state.random:
            torch.set_rng_state(state.random["cpu"])
        if "cuda" in state.random and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(state.random["cuda"], self.world.device)

    def check(self, state: TrainState) -> None:
        """Holds names and shapes of a state against the module.

        Raises:
            ValueError: one that differs.
        """
        others = sorted({name for name in state.tensors if MOMENT not in name} - set(self.trained()))
        if others:
            raise ValueError(
                f"the checkpoint of step {state.step} has {others[0]!r}, which is not trained now, it is of another model: "
                "use resume=never"
            )
        for name, each in self.trained().items():
            if name not in state.tensors:
                raise ValueError(f"the checkpoint of step {state.step} has no {name!r}, it is of another model: use resume=never")
            have, want = tuple(state.tensors[name].shape), tuple(shape_of(each))
            if have != want:
                raise ValueError(f"{name} is {list(have)} in the checkpoint of step {state.step} but {list(want)} in the model")

    def overwrite(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Sets a whole parameter: deepspeed's fp32 copy of it, and what the forward pass reads."""
        if self.zero_stage == 3:
            safe_set_local_fp32_param(parameter, self.partition(parameter, value))
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
            return
        if self.zero_stage > 0:
            safe_set_full_fp32_param(parameter, value)
        parameter.data.copy_(value)

    def partition(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """What this rank holds of a whole tensor under ZeRO-3: flat, the last rank's part padded with zeros."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = value.new_zeros(size * self.world.size)
        padded[: value.numel()] = value.flatten()
        return padded[self.world.rank * size : (self.world.rank + 1) * size]


def start(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    precision: str,
    world: World,
    gradient_clipping: NonNegativeFloat,
    zero_optimization: dict[str, Any],
    **others: Any,
) -> Engine:
    """Wraps a module and its optimizer.

    Args:
        module: its forward is the trained forward; moved to the rank's device.
        optimizer: of torch, over the module's parameters.
        precision: fp32 | bf16 | fp16; sets deepspeed's own keys.
        world: all ranks.
        gradient_clipping: the largest gradient norm; 0 for none.
        zero_optimization: deepspeed's section of that name; `stage` is 0 to 3.
        others: further top-level keys of deepspeed's config.

    Raises:
        ValueError: a key that deepspeed does not know, or a combination it cannot run.
    """
    check_keys(others)
    stage = zero_optimization.get("stage", 0)
    if zero_optimization.get("compute_grad_norm") is False:
        raise ValueError(
            "engine.zero_optimization.compute_grad_norm=false would let updates pass that are not finite: leave it out"
        )
    if precision != "fp32" and stage == 0:
        raise ValueError(f"precision={precision} needs engine=zero1 or above: at ZeRO-0 gradients would add up in {precision}")
    if precision == "fp16" and world.device.type == "cpu":
        raise ValueError("precision=fp16 does not run on a CPU: use precision=fp32 or bf16")
    config = {
        **others,
        "train_micro_batch_size_per_gpu": 1,  # deepspeed's own batch counting is not used
        "gradient_accumulation_steps": 1,
        "gradient_clipping": gradient_clipping,
        "zero_optimization": zero_optimization,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    if precision != "fp32":  # many chunks add up: bf16 sums stop growing at 256 addends
        config["data_types"] = {"grad_accum_dtype": "fp32", **others.get("data_types", {})}
        config.setdefault("communication_data_type", "fp32")  # and so are the sums over ranks
    try:
        core, *_ = deepspeed.initialize(
            model=module.to(world.device), optimizer=optimizer, config=config, dist_init_required=False
        )
    except ValidationError as error:
        places = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        faults = "; ".join(f"engine.zero_optimization.{place}: {rule}" for place, rule in places)
        raise ValueError(f"DeepSpeed refuses the config: {faults}") from error
    except DeepSpeedConfigError as error:
        raise ValueError(f"DeepSpeed refuses the config: {' '.join(str(error).split())}") from error
    return Engine(core, world, stage)
