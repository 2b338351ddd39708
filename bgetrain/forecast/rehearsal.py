"""A forward and a backward pass of the real module on torch's meta device: what they hold and compute, with nothing allocated.

Every operator that autograd calls is seen with the shapes it makes, so that the memory of a pass follows from the code that runs,
whatever the architecture. What a kernel needs inside is not seen; where a GPU has a kernel of another kind than the one that the
meta device takes (fused attention, dropout) that one's bytes are put in its place.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# floating-point operations of fused attention, in products of [L, E] with [E, L]: it makes the scores anew going back
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
ATEN = torch.ops.aten
IN_PLACE = {ATEN.addmm_: ATEN.addmm, ATEN.baddbmm_: ATEN.baddbmm}  # torch has formulas of the latter
DROPOUTS = (functional.dropout, torch.dropout, torch._VF.dropout)


class Pass(NamedTuple):
    """What one chunk's pass through a module takes.

    Attributes:
        kept: bytes from the end of the forward pass until its backward pass.
        forward: bytes at the peak of the forward pass; of a module that keeps nothing, its working memory.
        peak: bytes at the highest moment of both passes, without the gradients of parameters.
        fresh: the same with those of them that stand by then, where none stood before.
        forward_flops: operations of the products of the forward pass.
        flops: of both passes, with what is computed anew.
        output: bytes of what the forward pass returns, among `kept`.
    """

    kept: int
    forward: int
    peak: int
    fresh: int
    forward_flops: int
    flops: int
    output: int


class Ledger(TorchDispatchMode):
    """Counts the storages that live, the most that did at once, and the operations of products.

    Args:
        outside: tensors that are counted elsewhere, such as parameters.
        found: bool tensor's key (`key`) -> how many of its elements are True; of others all are.
    """

    def __init__(self, outside: Iterable[Tensor], found: Mapping[int, int]) -> None:
        super().__init__()
        self.outside = [each.untyped_storage() for each in outside]  # held, so that no other takes their keys
        self.known = {each._cdata for each in self.outside}
        self.found = dict(found)
        self.alive: dict[int, Any] = {}
        self.live = self.peak = self.gradients = self.fresh = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is ATEN._local_scalar_dense.default:  # what a mask holds is not known: as if there were padding
            return False if args[0].dtype == torch.bool else 0
        if func is ATEN.nonzero.default:
            result = args[0].new_empty(self.count(args[0]), args[0].ndim, dtype=torch.int64)
        else:
            if func is ATEN.index.Tensor:
                args = (args[0], self.places(args[1]), *args[2:])
            result = func(*args, **kwargs)
            if func is ATEN.index.Tensor and result.dtype == torch.bool and key(args[0]) in self.found:
                self.found[key(result)] = self.found[key(args[0])]  # some of its rows, all that are True among them
                self.outside.append(result.untyped_storage())
            formula = flop_registry.get(IN_PLACE.get(func._overloadpacket, func._overloadpacket))
            if formula is not None:
                self.flops += int(
                    formula(*args, **{name: each for name, each in kwargs.items() if name != "out"}, out_val=result)
                )
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self.enter(each)
        self.peak = max(self.peak, self.live)
        self.fresh = max(self.fresh, self.live + self.gradients)
        return result

    def enter(self, tensor: Tensor) -> None:
        """Counts a tensor's storage until it is let go of."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in self.alive:
            return
        self.alive[key] = (weakref.ref(storage, lambda _: self.leave(key)), size)
        self.live += size

    def leave(self, key: int) -> None:
        _, size = self.alive.pop(key, (None, 0))
        self.live -= size

    def grown(self, parameter: Tensor) -> None:
        """Takes a gradient that is complete out of what lives; called as a hook of its parameter."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if storage._cdata in self.alive:
            self.leave(storage._cdata)
            self.known.add(storage._cdata)
            self.outside.append(storage)
            self.gradients += storage.nbytes()

    def count(self, tensor: Tensor) -> int:
        return self.found.get(key(tensor), tensor.numel())

    def places(self, indices: Iterable[Tensor | None]) -> list[Tensor | None]:
        """Numbers in place of bool indices, which have no known count on the meta device."""
        found: list[Tensor | None] = []
        for each in indices:
            if each is None or each.dtype != torch.bool:
                found.append(each)
            else:
                found += [each.new_empty(self.count(each), dtype=torch.int64)] * each.ndim
        return found


def key(tensor: Tensor) -> int:
    """Tells a tensor's storage from all others that live."""
    return int(tensor.untyped_storage()._cdata)


class FusedAttention(torch.autograd.Function):
    """The shapes of a fused kernel for [n, heads, L, E]: no scores are kept, but their log-sum-exp and a mask as numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, ledger: Ledger) -> Tensor:
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        texts, heads, length, _ = query.shape
        output = query.new_empty(texts, length, heads, value.shape[-1]).transpose(1, 2)  # as kernels lay it: no copy follows
        # a boolean mask becomes one of numbers, for each layer anew; it is not widened to the heads
        numbers = None if mask is None else mask.new_empty(mask.shape, dtype=query.dtype) if mask.dtype == torch.bool else mask
        ctx.products = 2 * query.numel() * key.shape[-2]
        ctx.ledger = ledger
        ledger.flops += FORWARD_PRODUCTS * ctx.products
        ctx.save_for_backward(query, key, value, output, rows, *([] if numbers is None else [numbers]))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, rows, *_ = ctx.saved_tensors
        held = torch.empty_like(rows)  # each row's product of output and gradient
        ctx.ledger.flops += BACKWARD_PRODUCTS * ctx.products
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del held, output
        return *found, None, None


class Kernels(TorchFunctionMode):
    """Puts shapes of other kernels in the place of those that the meta device would take.

    Args:
        device: cpu | cuda, whose kernels are meant.
        ledger: counts.
        lists: int64 tensor's key -> its numbers, for code that reads them.
    """

    def __init__(self, device: str, ledger: Ledger, lists: Mapping[int, list[int]]) -> None:
        super().__init__()
        self.device, self.ledger, self.lists = device, ledger, lists

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        if func in DROPOUTS and self.device == "cuda":
            return dropped(*args, **kwargs)
        if func is Tensor.tolist and key(args[0]) in self.lists:
            return self.lists[key(args[0])]
        if func is Tensor.repeat_interleave and isinstance(args[1], Tensor) and key(args[1]) in self.lists:
            return args[0].new_empty(sum(self.lists[key(args[1])]), *args[0].shape[1:])
        return func(*args, **kwargs)

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **others: Any
    ) -> Tensor:
        """A CPU that drops weights keeps all of them; any other kernel is fused."""
        if self.device == "cpu" and dropout_p > 0:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **others)
        result: Tensor = FusedAttention.apply(query, key, value, attn_mask, self.ledger)
        return result


def dropped(states: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A GPU's dropout, which keeps a byte an element."""
    return torch.native_dropout(states, p, True)[0] if training and p > 0 else states


def rehearse(
    module: nn.Module,
    forward: Callable[[], Tensor],
    *,
    device: str,
    found: Mapping[int, int],
    lists: Mapping[int, list[int]],
    backward: bool,
) -> Pass:
    """Runs one chunk through a module.

    Args:
        module: on the meta device, in the dtype of the forward pass.
        forward: calls it, and returns what a gradient is given to.
        device: cpu | cuda, whose kernels are meant.
        found: as `Ledger` has it.
        lists: as `Kernels` has it.
        backward: whether there is a backward pass; without one nothing is kept.
    """
    ledger = Ledger([*module.parameters(), *module.buffers()], found)
    trained = [each for each in module.parameters() if each.requires_grad]
    hooks = [each.register_post_accumulate_grad_hook(ledger.grown) for each in trained] if backward else []
    with ExitStack() as stack:
        for mode in (torch.device("meta"), Kernels(device, ledger, lists), ledger, torch.set_grad_enabled(backward)):
            stack.enter_context(mode)
        output = forward()
        kept, highest, flops = ledger.live, ledger.peak, ledger.flops
        size = output.untyped_storage().nbytes()
        if backward:
            # past torch.autograd.backward, around which torch takes the modes off that checkpoints need going back
            gradient = torch.empty_like(output)
            _engine_run_backward((output,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)
    for hook in hooks:
        hook.remove()
    for each in trained:
        each.grad = None
    return Pass(kept, highest, ledger.peak, ledger.fresh, flops, ledger.flops, size)
