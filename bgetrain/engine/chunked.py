"""One update from many chunks: all in one graph, or in two passes with the memory of one (gradient caching)."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from bgetrain.engine import machine
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.states import spreading
from bgetrain.types import LossOutput

TIDY = 8  # chunks between two tidyings, which cost about as much as a hundredth of a chunk each; our choice
Chunk = Sequence[Tensor | None]
EmbeddingLoss = Callable[[Tensor, Tensor | None], LossOutput]


def chunk_seeds(seed: int, step: int, rank: int, count: int) -> list[int]:
    """Seeds of the dropout of each chunk: a function of its place alone, so that a resumed run repeats it."""
    return np.random.SeedSequence([seed, step, rank]).generate_state(max(count, 1), np.uint64).astype(np.int64).tolist()[:count]


def single_step(engine: Engine, chunks: Sequence[Chunk], order: Tensor, seeds: Sequence[int], loss: EmbeddingLoss) -> LossOutput:
    """Embeds all chunks in one graph and takes its gradient; memory grows with their number.

    Args:
        engine: its module is `BiEncoder`.
        chunks: what it takes of each.
        order: int64 [N], which text each row of the chunks is; rows beyond count for nothing.
        seeds: of each chunk's dropout.
        loss: all embeddings [N, D], text by text, and the temperature's shift -> LossOutput.
    """
    embeddings, shift = engine.forward(list(seeds), *(tensor for chunk in chunks for tensor in chunk))
    output = loss(embeddings[inverse(order)], shift)
    engine.backward(output.loss, last=True)
    return output._replace(loss=output.loss.detach())


def cached_step(engine: Engine, chunks: Sequence[Chunk], order: Tensor, seeds: Sequence[int], loss: EmbeddingLoss) -> LossOutput:
    """The same update in bounded memory (Gao et al. 2021, arXiv:2101.06983); arguments as for `single_step`.

    First pass without graphs, then the loss on the embeddings alone, then chunk by chunk the forward again and the
    backward of its embeddings' gradient. Every rank must bring the same number of chunks: ZeRO-2 and 3 communicate in
    each. The second pass goes backwards, as autograd would: gradients then add up in the same order, bit for bit.
    """
    parts, shift = [], None
    for number, (seed, chunk) in enumerate(zip(seeds, chunks, strict=True)):
        with torch.no_grad():
            embeddings, shift = engine.forward([seed], *chunk)
        parts.append(embeddings)
        tidy(engine, number)
    texts = order.split(split_at(list(map(len, parts)), len(order)))
    leaf = torch.cat(parts)[inverse(order)].requires_grad_()
    parts.clear()
    leaves = [leaf] if shift is None else [leaf, shift.requires_grad_()]
    output = loss(leaf, shift)
    gradient, *to_shift = torch.autograd.grad(spreading(output.loss), leaves)
    for number in reversed(range(len(chunks))):
        tidy(engine, number)
        embeddings, shift = engine.forward([seeds[number]], *chunks[number])
        part = (embeddings[: len(texts[number])] * gradient[texts[number]]).sum()  # 0 of an idle chunk
        if shift is not None:  # once in all; ZeRO wants every parameter in every pass
            part = part + (shift * to_shift[0] * float(number == 0)).sum()
        engine.backward(part, last=number == 0)
    return output._replace(loss=output.loss.detach())


def inverse(order: Tensor) -> Tensor:
    """Where each text stands in `order`."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return place


def split_at(sizes: Sequence[int], total: int) -> list[int]:
    """How many of `total` each of `sizes` holds, taken in turn."""
    ends = [min(end, total) for end in accumulate(sizes)]
    return [end - begin for begin, end in pairwise([0, *ends])]


def tidy(engine: Engine, number: int) -> None:
    """On a CPU gives the gaps between blocks of memory back now and then: chunks of many sizes leave more and more."""
    if number % TIDY == 0 and engine.world.device.type == "cpu":
        machine.trim()


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
