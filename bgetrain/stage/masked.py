"""One step of masked auto-encoding: masks, forward passes, the loss over the tokens of all ranks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.data.masking import Masking
from bgetrain.data.texts import word_chunk
from bgetrain.data.tokenize import cut
from bgetrain.engine.chunked import chunk_seeds, summed_step
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.machine import Stopwatch
from bgetrain.engine.window import Counts
from bgetrain.types import LossOutput, Objective, Predictions, TextBatch, Totals, WordChunk, World


class WordBatch(NamedTuple):
    """This rank's share of a step, cut into chunks.

    Attributes:
        chunks: of at most `chunk_tokens` padded tokens each.
        lengths: int64 [N], tokens of each text.
        epoch: passes over the data completed when the step began.
    """

    chunks: list[WordChunk]
    lengths: Tensor
    epoch: float


class Trained(NamedTuple):
    """What a step needs besides its batch.

    Attributes:
        engine: its module is `RetroMAE`.
        objective: what it is trained for.
        masking: how texts are masked.
        world: all ranks.
    """

    engine: Engine
    objective: Objective
    masking: Masking
    world: World


def chunked(batch_at: Callable[[int], TextBatch], chunk_tokens: int, pad_id: int, step: int) -> WordBatch:
    """The batch of a step in chunks of texts of similar length."""
    return chunks_of(batch_at(step), chunk_tokens, pad_id)


def chunks_of(batch: TextBatch, chunk_tokens: int, pad_id: int) -> WordBatch:
    lengths = batch.text.lengths
    chunks = [word_chunk(batch, group, pad_id) for group in cut(lengths, chunk_tokens, padded=True)]
    return WordBatch(chunks, lengths, batch.epoch)


class Work(NamedTuple):
    """A rank's chunks of one step with the encoder's masks; chunks beyond its own have nothing to predict.

    Attributes:
        chunks: on the rank's device, as many on every rank.
        masked: of each, int64 [N, L], its texts as the encoder reads them, and bool [N, L], True where it predicts.
        own: how many are this rank's.
        totals: of all ranks.
    """

    chunks: list[WordChunk]
    masked: list[tuple[Tensor, Tensor]]
    own: int
    totals: Totals


def work_of(trained: Trained, chunks: Sequence[WordChunk], step: int, watch: Stopwatch) -> Work:
    """Draws the encoder's masks and counts, in one exchange, what all ranks predict.

    ZeRO-2 and 3 communicate in every pass: ranks with fewer chunks repeat one without its labels. Each has at least one.
    """
    world, masking = trained.world, trained.masking
    here = [to_device(chunk, world.device) for chunk in chunks]
    with watch:
        masked = [masking.encoder(chunk, step) for chunk in here]
    counts = [(at.sum(), (chunk.words >= 0).sum(), len(chunk.ids)) for chunk, (_, at) in zip(here, masked, strict=True)]
    own = [sum(int(each[place]) for each in counts) for place in range(3)]
    found = distributed.gather_arrays(np.array([[*own, len(here)]]), world)
    encoder, decoder, texts, _ = found.sum(0).tolist()
    for _ in range(int(found[:, 3].max()) - len(chunks)):
        here.append(here[0])
        masked.append((here[0].ids, torch.zeros_like(here[0].ids, dtype=torch.bool)))
    return Work(here, masked, len(chunks), Totals(encoder, decoder, texts))


def to_device(chunk: WordChunk, device: torch.device) -> WordChunk:
    mask = None if chunk.mask is None else chunk.mask.to(device, non_blocking=True)
    ids, words, rows = (each.to(device, non_blocking=True) for each in (chunk.ids, chunk.words, chunk.rows))
    return WordChunk(ids, mask, words, rows)


def forward(
    trained: Trained, work: Work, number: int, step: int, watch: Stopwatch, score: Callable[..., Any] | None = None
) -> LossOutput:
    """The loss of one chunk.

    Args:
        trained: engine and objective.
        work: of the step.
        number: of the chunk.
        step: seeds the decoder's masks.
        watch: measures the time of masks.
        score: in place of the objective's.
    """
    chunk, (ids, encoder_at) = work.chunks[number], work.masked[number]
    visible, decoder_at = None, torch.zeros_like(encoder_at)
    if trained.objective.query is not None:
        with watch:
            visible = trained.masking.decoder(chunk, step)
        if number < work.own:
            decoder_at = chunk.words >= 0
    asked = partial(trained.objective.score, totals=work.totals) if score is None else score
    loss, metrics = trained.engine.forward(asked, ids, chunk.mask, encoder_at, chunk.ids, visible, decoder_at)
    return LossOutput(loss, metrics)


def update_once(trained: Trained, step: int, batch: WordBatch) -> tuple[LossOutput, Counts]:
    """One step's loss and gradient, averaged over the labelled tokens of all ranks."""
    watch = Stopwatch(trained.world.device)
    work = work_of(trained, batch.chunks, step, watch)
    seeds = chunk_seeds(trained.masking.seed, step, trained.world.rank, len(work.chunks))

    def loss(number: int) -> LossOutput:
        torch.manual_seed(seeds[number])
        return forward(trained, work, number, step, watch)

    output = summed_step(trained.engine, len(work.chunks), loss)
    padded = sum(chunk.ids.numel() for chunk in work.chunks)
    return output, Counts(len(batch.lengths), int(batch.lengths.sum()), padded, {"masking": watch.seconds()})


def scored(trained: Trained, batch: WordBatch) -> dict[str, float]:
    """Loss and metrics of held-out texts under masks that are the same each time, as `held_out_*`; dropout is off."""
    module = trained.engine.core.module
    watch = Stopwatch(trained.world.device)
    work = work_of(trained, batch.chunks, 0, watch)
    total: dict[str, Tensor] = {}
    module.eval()
    try:
        with torch.no_grad():
            for number in range(len(work.chunks)):
                output = forward(trained, work, number, 0, watch)
                for name, value in {"loss": output.loss, **output.metrics}.items():
                    total[name] = total.get(name, 0.0) + value.double()
    finally:
        module.train()
    sums = distributed.sum_over_ranks(torch.stack([value.cpu() for value in total.values()]), trained.world).tolist()
    return {f"held_out_{name}": value for name, value in zip(total, sums, strict=True)}


def probe(trained: Trained, batch: WordBatch) -> Tensor:
    """A forward pass that reaches every parameter."""

    def reach(predictions: Predictions, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        states = [
            each.float().sum() for each in (predictions.encoder, predictions.decoder, predictions.words) if each is not None
        ]
        layers = [each.float().sum() for each in (weight, bias) if each is not None]
        return torch.stack([*states, *layers]).sum(), {}

    watch = Stopwatch(trained.world.device)
    return forward(trained, work_of(trained, batch.chunks[:1], 1, watch), 0, 1, watch, reach).loss
