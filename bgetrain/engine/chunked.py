"""One update from many chunks: all in one graph, or in two passes with the memory of one (gradient caching)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bgetrain.engine.deepspeed import Engine
from bgetrain.types import LossOutput


def chunk_seeds(seed: int, step: int, rank: int, count: int) -> list[int]:
    """Seeds of the dropout of each chunk: a function of its place alone, so that a resumed run repeats it."""
    return np.random.SeedSequence([seed, step, rank]).generate_state(max(count, 1), np.uint64).astype(np.int64).tolist()[:count]


def single_step(
    engine: Engine, chunks: Sequence[tuple[Tensor | None, ...]], seeds: Sequence[int], loss: Callable[[Tensor], LossOutput]
) -> LossOutput:
    """Embeds all chunks in one graph and takes its gradient; memory grows with their number.

    Args:
        engine: its module is `BiEncoder`.
        chunks: (ids [N, L], mask [N, L] or None) each.
        seeds: of each chunk's dropout.
        loss: all embeddings [sum of N, D], in the order of the chunks -> LossOutput.
    """
    output = loss(engine.forward(list(seeds), *(tensor for chunk in chunks for tensor in chunk)))
    engine.backward(output.loss, last=True)
    return output._replace(loss=output.loss.detach())


def cached_step(
    engine: Engine, chunks: Sequence[tuple[Tensor | None, ...]], seeds: Sequence[int], loss: Callable[[Tensor], LossOutput]
) -> LossOutput:
    """The same update in bounded memory (Gao et al. 2021, arXiv:2101.06983); arguments as for `single_step`.

    First pass without graphs, then the loss on the embeddings alone, then chunk by chunk the forward again and the
    backward of its embeddings' gradient. Every rank must bring the same number of chunks: ZeRO-2 and 3 communicate in
    each. The second pass goes backwards, as autograd would: gradients then add up in the same order, bit for bit.
    """
    with torch.no_grad():
        parts = [engine.forward([seed], *chunk) for seed, chunk in zip(seeds, chunks, strict=True)]
    leaf = torch.cat(parts).requires_grad_()
    output = loss(leaf)
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    gradients = gradient.split([len(part) for part in parts])
    for number in reversed(range(len(chunks))):
        embeddings = engine.forward([seeds[number]], *chunks[number])
        engine.backward((embeddings * gradients[number]).sum(), last=number == 0)
    return output._replace(loss=output.loss.detach())


def summed_step(engine: Engine, num_chunks: int, loss: Callable[[int], LossOutput]) -> LossOutput:
    """An update from a loss that is a sum over chunks: forward and backward one by one.

    Args:
        engine: trains.
        num_chunks: > 0, the same on every rank.
        loss: chunk number -> LossOutput, addends of the step's loss.
    """
    total: LossOutput | None = None
    for number in range(num_chunks):
        output = loss(number)
        engine.backward(output.loss, last=number == num_chunks - 1)
        detached = output.loss.detach()
        if total is None:
            total = LossOutput(detached, dict(output.metrics))
        else:
            metrics = {name: value + output.metrics[name] for name, value in total.metrics.items()}
            total = LossOutput(total.loss + detached, metrics)
    assert total is not None
    return total
