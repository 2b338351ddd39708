"""One forward and backward of the longest rows that leaves no trace, and what an engine's parameters are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.diagnosis import size
from bgetrain.engine.findings import Finding
from bgetrain.engine.machine import peak_bytes
from bgetrain.engine.states import inner_optimizer
from bgetrain.types import Ragged

CPU_TOKENS = 1024  # a CPU does not run out of memory in a way that can be answered, and takes its time; our choice
SLICE = 1 << 22  # elements of a parameter added up at a time, for memory
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
NAME = "longest rows"


class Bare:
    """An engine's module without the engine: deepspeed does not learn of its passes, so that no gradient is kept."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def forward(self, *arguments: Any) -> Any:
        """Calls the module."""
        return self.engine.core.module(*arguments)


def longest_rows(text: Ragged, longest: int, chunk_tokens: int, device: str) -> Ragged:
    """As many rows of the longest length as a chunk takes, filled with the tokens of `text`.

    Args:
        text: of a batch; no more rows than it has.
        longest: tokens of a row.
        chunk_tokens: of a chunk, with one row at the least.
        device: "cpu" or "cuda"; on a CPU of fewer rows.
    """
    room = chunk_tokens if device == "cuda" else min(chunk_tokens, CPU_TOKENS)
    rows = min(len(text.lengths), max(1, room // longest))
    count = rows * longest
    return Ragged(text.ids.repeat(-(-count // len(text.ids)))[:count], torch.full((rows,), longest))


def run(engine: Engine, forward: Callable[[], Tensor]) -> Finding:
    """A forward pass and a backward pass through all layers, as training does them.

    The gradient is taken of one parameter only, the first, which autograd reaches through all others' layers: DeepSpeed's
    hooks, which would add it to the next step's, are not called, and no gradient is left anywhere. Random numbers drawn are
    put back.

    Args:
        engine: as the first step will have it; its ranks call this together.
        forward: (nothing) -> fp32 scalar, made by the module and not by the engine (`Bare`).

    Raises:
        ValueError: out of memory under ZeRO-3, where the other ranks wait for this one's parameters.
    """
    device = engine.world.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            loss = forward()
            (gradient,) = torch.autograd.grad(loss, [next(iter(engine.trained().values()))])
        finite = bool(loss.detach().isfinite()), bool(gradient.isfinite().all())
        del loss, gradient
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        finding = Finding(NAME, "error", out_of_memory(engine.zero_stage))
        if engine.zero_stage == 3:
            raise ValueError(finding.line) from error
        return finding
    finally:
        if engine.zero_stage == 3:
            engine.core.empty_partition_cache()
    if not all(finite):
        what = "gradient" if finite[0] else "loss"
        line = f"the {what} of a chunk is not finite: the model's weights are damaged, or too large for this precision: "
        return Finding(NAME, "error", line + "use precision=fp32 or bf16, or other weights")
    return Finding(NAME, "ok", f"forward and backward, {size(peak_bytes(engine.world))} held at the most so far")


def out_of_memory(zero_stage: int) -> str:
    """What to do where a single chunk does not fit."""
    zero = f", or engine=zero{zero_stage + 1}" if zero_stage < 3 else ""
    mends = f"lower chunk_tokens, set model.gradient_checkpointing=true{zero}"
    return f"out of memory in the forward and backward pass of one chunk of the longest rows: {mends}"


def checkpoint_bytes(engine: Engine) -> int:
    """Of one checkpoint: weights and the optimizer's moments of what is trained, in fp32."""
    optimizer = inner_optimizer(engine.core.optimizer)
    group = optimizer.param_groups[0]
    moments = 2 if "betas" in group else int(bool(group.get("momentum", 1)))
    return 4 * (1 + moments) * sum(getattr(each, "ds_numel", each.numel()) for each in engine.trained().values())


def model_bytes(engine: Engine) -> int:
    """Of `model/`, in fp32."""
    return 4 * sum(getattr(each, "ds_numel", each.numel()) for each in engine.core.module.parameters())


def checksums(engine: Engine) -> dict[str, int]:
    """Name -> sum of the bits of each parameter, as this rank computes with it; none under ZeRO-3, which splits them."""
    if engine.zero_stage == 3:
        return {}
    return {name: checksum(each.detach()) for name, each in engine.core.module.named_parameters()}


def checksum(values: Tensor) -> int:
    """The bits of numbers added up as integers; the same on every device, whatever the order."""
    flat = values.contiguous().view(-1)
    bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    return int(sum(each.sum(dtype=torch.int64) for each in bits.split(SLICE))) if len(bits) else 0
