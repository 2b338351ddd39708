"""Whether a step's activations fit: what a single step would keep, measured, against what the device has left."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bgetrain.distributed import max_of_each
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.machine import free_bytes
from bgetrain.engine.states import inner_optimizer
from bgetrain.model.bi_encoder import BiEncoder
from bgetrain.types import Chunk, Ragged, World

PROBE = 512  # tokens of the longer text measured; longer texts follow from the fit, which is exact in their length
SAFETY = 0.8  # of the free memory: the rest is for the loss, the allocator's gaps and other programs; our choice
GB = 10**9
FLAG = "gradient_checkpointing"  # transformers sets it on each layer that computes its activations anew


class Size(NamedTuple):
    """What a chunk's memory follows from; padding counts.

    Attributes:
        tokens: the sum of its texts' lengths.
        squares: the sum of their squares.
    """

    tokens: int
    squares: int


class Cost(NamedTuple):
    """Bytes of a chunk: linear * tokens + quadratic * squares, the quadratic part attention's."""

    linear: float
    quadratic: float

    def of(self, size: Size) -> float:
        """Bytes of a chunk of this size."""
        return self.linear * size.tokens + self.quadratic * size.squares


def size_of(chunk: Chunk | Ragged) -> Size:
    """Of a padded chunk, whose texts are all of its width, or of a packed one."""
    if isinstance(chunk, Ragged):
        return Size(len(chunk.ids), int(chunk.lengths.square().sum()))
    texts, width = chunk.ids.shape
    return Size(texts * width, texts * width * width)


class Footprint(NamedTuple):
    """What a chunk costs.

    Attributes:
        kept: from its forward pass until its backward pass.
        working: held besides during its backward pass: the gradients of one layer's activations, at most as large as
            these, and with gradient checkpointing the activations themselves, computed anew.
    """

    kept: Cost
    working: Cost

    def single(self, chunks: Iterable[Chunk | Ragged]) -> int:
        """Bytes at the peak of a step that keeps all these chunks."""
        sizes = list(map(size_of, chunks))
        return int(sum(map(self.kept.of, sizes)) + max(map(self.working.of, sizes), default=0.0))


class Budget(NamedTuple):
    """What decides between a single and a cached step.

    Attributes:
        footprint: of the module; None where the mode is given.
        limit: bytes of activations that this rank may hold.
        source: of the limit, for people.
        mode: auto | single | cached.
    """

    footprint: Footprint | None
    limit: int
    source: str
    mode: str


def agree(budget: Budget, chunks: Sequence[Chunk | Ragged], world: World) -> tuple[str, int, str]:
    """Chooses for one step from the sizes of all ranks' chunks, in one exchange between hosts; all ranks alike.

    Ranks that differed would hang under ZeRO-2 and 3, which communicate in each pass.

    Args:
        budget: as `plan` made it.
        chunks: this rank's.
        world: all ranks.

    Returns:
        single | cached, the largest number of chunks of any rank, and the reason.
    """
    if budget.footprint is None:
        (count,) = max_of_each([len(chunks)], world)
        return budget.mode, count, ""
    count, needs, least = max_of_each([len(chunks), budget.footprint.single(chunks), -budget.limit], world)
    mode = "cached" if needs > -least else "single"
    verb = "would keep" if mode == "cached" else "keeps"
    return mode, count, f"single {verb} {needs / GB:.3g} GB of activations, {-least / GB:.3g} GB {budget.source}"


def plan(mode: str, limit_gb: float | None, footprint: Footprint | None, engine: Engine) -> Budget:
    """What this rank may hold: `limit_gb`, or a share of what is free once the engine has all that it will need.

    Args:
        mode: auto | single | cached.
        limit_gb: 10^9 bytes; None: as the device has.
        footprint: of the engine's module.
        engine: ready for the first step; its memory still to come is taken off.
    """
    if mode != "auto" or footprint is None:
        return Budget(None, 0, "", mode)
    if limit_gb is not None:
        return Budget(footprint, int(limit_gb * GB), "are allowed by memory_limit", mode)
    free = max(0.0, SAFETY * (free_bytes(engine.world) - pending_bytes(engine)))
    known = f"are free ({SAFETY:.0%} of what DeepSpeed leaves)" if free else "are known to be free: set memory_limit"
    return Budget(footprint, int(free), known, mode)


def measure(module: BiEncoder, *, dtype: torch.dtype, max_len: int, world: World) -> Footprint:
    """Counts what autograd saves in two small forward passes, and fits it; before DeepSpeed takes the module over.

    Two chunks of 2 texts, at `max_len` tokens (512 at the most) and at a quarter of them: every real chunk lies between
    or, in length alone, beyond. Padded ones hold padding, without which attention may take another path. With gradient
    checkpointing autograd saves each layer's input, and one layer's activations are added, which the backward pass
    computes anew.

    Args:
        module: `BiEncoder` in training mode; moved to the rank's device.
        dtype: of the forward pass.
        max_len: tokens of the longest text.
        world: all ranks.
    """
    module.to(world.device)
    longest = max(2, min(max_len, PROBE))
    lengths = sorted({max(2, longest // 4), longest})
    checkpointed = [each for each in module.modules() if getattr(each, FLAG, False)]
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        kept = [probe(module, dtype, length, world)[0] for length in lengths]
        for each in checkpointed:
            setattr(each, FLAG, False)
        try:
            layers = [probe(module, dtype, length, world)[1] for length in lengths]
        finally:
            for each in checkpointed:
                setattr(each, FLAG, True)
    times = 2 if checkpointed else 1
    return Footprint(fit(lengths, kept), fit(lengths, [times * layer for layer in layers]))


def fit(lengths: Sequence[int], sizes: Sequence[float]) -> Cost:
    """The cost of chunks of 2 texts from one or two lengths and their bytes."""
    per_token = [size / (2 * length) for length, size in zip(lengths, sizes, strict=True)]
    if len(lengths) == 1:
        return Cost(per_token[0], 0.0)
    quadratic = max(0.0, (per_token[1] - per_token[0]) / (lengths[1] - lengths[0]))
    return Cost(per_token[1] - quadratic * lengths[1], quadratic)


def probe(module: BiEncoder, dtype: torch.dtype, length: int, world: World) -> tuple[int, int]:
    """Bytes saved by a forward pass over 2 texts, and the most by any one layer."""
    ids = torch.zeros(2, length, dtype=torch.int64, device=world.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, -1] = False
    chunk = (ids.flatten(), torch.tensor([length, length])) if module.packed else (ids, mask)
    weights = {name: each.detach().to(dtype).requires_grad_(each.requires_grad) for name, each in module.named_parameters()}
    held = [*weights.values(), *module.parameters(), *module.buffers()]
    flagged = [each for each in module.modules() if hasattr(each, FLAG)]
    layers = [each for each in flagged if not any(hasattr(child, FLAG) for child in descendants(each))]
    before, largest = 0, 0

    def enter(*_: object) -> None:
        nonlocal before
        before = counted.total

    def leave(*_: object) -> None:
        nonlocal largest
        largest = max(largest, counted.total - before)

    hooks = [hook for each in layers for hook in (each.register_forward_pre_hook(enter), each.register_forward_hook(leave))]
    try:
        with torch.enable_grad(), saved_bytes(held) as counted:
            embeddings = functional_call(module, weights, ([0], *chunk))
        del embeddings  # held until here: a freed activation's address may come back as another's
    finally:
        for hook in hooks:
            hook.remove()
    return counted.total, largest


def descendants(module: nn.Module) -> Iterator[nn.Module]:
    return (each for each in module.modules() if each is not module)


class Counted:
    """Storages seen so far, each once; `total` in bytes."""

    def __init__(self, left_out: Iterable[Tensor]) -> None:
        self.seen = {each.untyped_storage().data_ptr() for each in left_out}
        self.total = 0

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor.detach()  # the same memory; a node that saved its own output itself would never be freed


@contextlib.contextmanager
def saved_bytes(left_out: Iterable[Tensor]) -> Iterator[Counted]:
    """Counts what autograd saves for the backward pass, each storage once, without those of `left_out` (parameters)."""
    counted = Counted(left_out)
    with torch.autograd.graph.saved_tensors_hooks(counted.add, lambda tensor: tensor):
        yield counted


def pending_bytes(engine: Engine) -> int:
    """What deepspeed will still take on this rank: gradients, and the optimizer's states before the first step."""
    core, ranks = engine.core, engine.world.size
    size = sum(getattr(each, "ds_numel", each.numel()) for each in engine.trained().values())
    element = 2 if core.fp16_enabled() or core.bfloat16_enabled() else 4
    # ZeRO-0 and 1 hold every gradient, 2 and 3 a share; added up in fp32, beside one in the dtype of the backward pass
    pending = 4 * size // (ranks if engine.zero_stage > 1 else 1) + (size * element if element < 4 else 0)
    if not inner_optimizer(core.optimizer).state:
        group = core.optimizer.param_groups[0]
        states = 2 if "betas" in group else int(bool(group.get("momentum", 1)))
        pending += states * 4 * size // (ranks if engine.zero_stage > 0 else 1)
    if engine.zero_stage > 0 and engine.world.device.type == "cuda":  # taken whole; on a CPU pages come as they are used
        pending += int(core.zero_reduce_bucket_size()) * element * (2 if core.zero_overlap_comm() else 1)
    return pending
