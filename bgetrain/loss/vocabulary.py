"""Cross-entropy over a vocabulary, from the states before its layer, in memory that does not grow with the tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# R tokens, r tokens of a slice

# fp32 numbers of a slice of logits, by kind of device. cpu: 64 MB, of 8 to 256 MB within 3 % of the fastest at 30,522 words; at
# 250,002 words, 67 tokens, 256 MB would take 7 to 25 % less. Elsewhere 512 MB: each slice reads and writes the whole gradient
# of the weight, which at 250,002 words takes some 500 tokens to be worth it on an accelerator (reckoned, not measured).
ELEMENTS = {"cpu": 2**24}
ELEMENTS_ELSEWHERE = 2**27


def slice_rows(num_words: int, device: torch.device) -> int:
    """Tokens whose logits over `num_words` words are held at a time, > 0."""
    return max(1, ELEMENTS.get(device.type, ELEMENTS_ELSEWHERE) // num_words)


def cross_entropy(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled sum of -log softmax(states weight^T + bias)[target] over tokens.

    Slice after slice of the tokens gets its logits, its loss and its gradients at once, so that nothing is computed twice and
    no [R, V] tensor is kept (as in Liger Kernel, Hsu et al. 2024, arXiv:2410.10989): 6 R V D operations, and memory of one
    fp32 slice of logits (and a copy in the dtype of the states, if that is another) besides the gradients themselves, fp32.
    They are computed in the forward pass, where autograd wants them, and kept for the backward pass instead of the inputs:
    ZeRO-3 may let go of `weight` in between. The graph serves one backward pass: it scales the gradients in place.

    Args:
        states: [R, D], R >= 0; the products are in their dtype.
        weight: [V, D] of the vocabulary layer.
        bias: [V]; None where it has none.
        targets: int64 [R], 0 <= target < V.
        scales: fp32 [R], >= 0, of each token's loss; no gradient flows to them.

    Returns:
        fp32 scalar, sum of scales * losses, with a graph to states, weight and bias even where R = 0.
        fp32 [R], the losses; not differentiable.
        bool [R], whether no word scores higher than the target (in 16 bits: and none before it as high); not differentiable.
    """
    result: tuple[Tensor, Tensor, Tensor] = SlicedCrossEntropy.apply(
        states, weight, bias, targets, scales, torch.is_grad_enabled()
    )
    return result


class SlicedCrossEntropy(torch.autograd.Function):
    """What `cross_entropy` describes; `recorded`: a graph is wanted."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scales: Tensor, recorded: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_states, to_weight, to_bias = gradients = sums_of_gradients(ctx, states, weight, bias, recorded=recorded)
        matrix, offset = weight.to(states.dtype), None if bias is None else bias.to(states.dtype)
        rows = min(slice_rows(len(weight), states.device), max(1, len(states)))
        losses, correct = torch.empty_like(scales), torch.empty_like(targets, dtype=torch.bool)
        # relative to the largest, for a factor such as 1 / 60,000 is more than fp16 resolves
        largest = scales.amax() if len(scales) else scales.new_ones(())
        relative = scales / largest.clamp(min=torch.finfo(torch.float32).tiny)
        product = states.new_empty(rows, len(weight))
        logits = product.float()  # the same tensor where the states are fp32
        for first in range(0, len(states), rows):
            here = slice(first, first + rows)
            part, target = states[here], targets[here, None]
            low, slopes = product[: len(part)], logits[: len(part)]  # [r, V]
            project(part, matrix, offset, out=low)
            if low.dtype != torch.float32:
                slopes.copy_(low)
            score, highest = slopes.gather(1, target), slopes.amax(1, keepdim=True)
            # 16 bits have equal scores often, of which one is the answer
            right = score >= highest if low.dtype == torch.float32 else slopes.argmax(1, keepdim=True) == target
            total = slopes.sub_(highest).exp_().sum(1, keepdim=True)
            losses[here] = (total.log() + highest - score)[:, 0]
            correct[here] = right[:, 0]
            if not any(each is not None for each in gradients):
                continue
            slopes.scatter_add_(1, target, -total)  # softmax - one hot, times total
            if low.dtype != torch.float32:
                low.copy_(slopes.div_(total))
                total = torch.ones_like(total)
            factor = relative[here, None] / total  # [r, 1]: on [r, D] it costs less than on [r, V]
            if to_states is not None:
                torch.mul(low @ matrix, factor, out=to_states[here])
            if to_weight is not None:
                add_product(to_weight, low.T, (part * factor).to(part.dtype))
            if to_bias is not None:
                to_bias.addmv_(slopes.T, factor[:, 0])
        ctx.save_for_backward(largest, *gradients)
        ctx.mark_non_differentiable(losses, correct)
        return torch.dot(scales, losses), losses, correct

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        largest, *gradients = ctx.saved_tensors
        return *passed_on(ctx, gradients, above[0] * largest), None, None, None


def sums_of_gradients(
    ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, *, recorded: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """fp32 zeros for the gradients of a Function's first three inputs; None for those that need none."""
    inputs = (states, weight, bias)
    ctx.dtypes = [None if each is None else each.dtype for each in inputs]
    found = [
        torch.zeros(each.shape, dtype=torch.float32, device=each.device) if recorded and needed and each is not None else None
        for each, needed in zip(inputs, ctx.needs_input_grad, strict=False)
    ]
    return found[0], found[1], found[2]


def passed_on(ctx: Any, gradients: Sequence[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """The gradients times the factor, in the dtypes of their inputs."""
    pairs = zip(gradients, ctx.dtypes, strict=True)
    return [None if each is None else each.mul_(factor).to(dtype) for each, dtype in pairs]


def project(states: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """Writes logits [R, V] of states [R, D]."""
    if bias is None:
        torch.mm(states, weight.T, out=out)
    else:
        torch.addmm(bias, states, weight.T, out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to an fp32 total."""
    if right.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right
