"""stage=retromae: masked auto-encoding pre-training (Xiao et al. 2022, arXiv:2205.12035)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.data.texts import text_batch
from bgetrain.data.tokenize import cut
from bgetrain.engine.chunked import chunk_seeds, summed_step
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.loop import Counts
from bgetrain.model.retromae import RetroMAE
from bgetrain.stage import build, supply
from bgetrain.target import call
from bgetrain.types import LossOutput, MaskedChunk, TextBatch, World


class Masked(NamedTuple):
    """This rank's share of a step with its masks drawn.

    Attributes:
        chunks: of at most `chunk_tokens` padded tokens each.
        texts: N of them.
        tokens: real ones.
        epoch: passes over the data completed when the step began.
    """

    chunks: list[MaskedChunk]
    texts: int
    tokens: int
    epoch: float


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Trains an encoder to reconstruct texts and leaves it, with its masked-LM head, in `output_dir/model`.

    Args:
        cfg: the resolved config, as `conf/stage/retromae.yaml` has it.
        world: all ranks.
        log: called on rank 0.

    Returns:
        Figures for `result.json`.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    source = build.source(cfg, world)
    build.need(source.texts, source, cfg, "texts", "data=text, data=beir or data=pydocs")
    texts, body = build.all_of(
        lambda: distributed.after_first(world, lambda: supply.opened(source, lambda each: each.texts)),
        lambda: build.body(cfg, source, world, masked_lm=True),
    )
    if body.tokenizer.mask_token_id is None:
        raise ValueError("model.tokenizer has no mask token, which stage=retromae needs: choose a masked language model")
    supplied = supply.pretraining(cfg, source, texts, world)
    part = partial(distributed.share, world=world)
    clean_at = partial(text_batch, supplied.feeds, body.tokenizer, supplied.plan, part)
    torch.manual_seed(cfg["seed"])  # the decoder's fresh weights, alike on every rank
    engine, schedule = build.engine(cfg, RetroMAE(body.backbone), world)
    batch_at = partial(masked_batch, cfg, body.tokenizer, clean_at)
    first_step = build.resumed(cfg, engine, lambda: probe(engine, batch_at(1), world))
    foreseen = batch_at(first_step)
    ratios = [f"{cfg['masking'][key]:.0%}" for key in ("encoder_ratio", "decoder_ratio")]
    build.announce(
        cfg,
        body,
        engine,
        supplied.sizes,
        {
            **supplied.facts,
            "masked": f"{ratios[0]} of the encoder's tokens, {ratios[1]} of the decoder's",
            "tokens per step": f"about {foreseen.tokens * supplied.plan.size(first_step) // foreseen.texts:,}",
            "steps": f"{first_step} to {supplied.total_steps} ({supplied.plan.epoch(supplied.total_steps + 1):.2f} epochs)",
        },
        world,
    )
    update = partial(update_once, cfg, engine, world)
    figures = build.train(cfg, engine, batch_at, update, range(first_step, supplied.total_steps + 1), schedule, log, world)
    build.save_model(cfg, engine, body, "lm.", source, world)
    return {"steps": supplied.total_steps, "texts": sum(map(len, texts)), "training": figures}


def masked_batch(cfg: Mapping[str, Any], tokenizer: Any, clean_at: Callable[[int], TextBatch], step: int) -> Masked:
    """Draws the masks of a step; a function of (seed, step) for each text of the global batch."""
    batch = clean_at(step)
    chunks = [
        call(
            cfg["masking"],
            batch,
            group,
            mask_id=tokenizer.mask_token_id,
            vocab_size=len(tokenizer),
            pad_id=tokenizer.pad_token_id,
            seed=cfg["seed"],
            step=step,
        )
        for group in cut(batch.text.lengths, cfg["chunk_tokens"], padded=True)
    ]
    return Masked(chunks, len(batch.text.lengths), int(batch.text.lengths.sum()), batch.epoch)


def update_once(cfg: Mapping[str, Any], engine: Engine, world: World, step: int, batch: Masked) -> tuple[LossOutput, Counts]:
    """One step's loss and gradient, averaged over the labelled tokens of all ranks."""
    labels = [[(chunk.encoder_labels != -100).sum(), (chunk.decoder_labels != -100).sum()] for chunk in batch.chunks]
    counts = distributed.sum_over_ranks(torch.tensor(labels).sum(0), world).tolist()
    # ZeRO-2 and 3 communicate in every pass: ranks with fewer chunks repeat one without its labels
    missing = distributed.max_over_ranks(len(batch.chunks), world) - len(batch.chunks)
    chunks = [*batch.chunks, *[unlabelled(batch.chunks[0])] * missing]
    seeds = chunk_seeds(cfg["seed"], step, world.rank, len(chunks))

    def loss(number: int) -> LossOutput:
        torch.manual_seed(seeds[number])
        chunk = chunks[number]
        encoder_at, decoder_at = chunk.encoder_labels != -100, chunk.decoder_labels != -100
        logits = forward(engine, chunk, world)
        output: LossOutput = call(
            cfg["loss"],
            logits[0],
            build.on_device(chunk.encoder_labels[encoder_at], world),
            logits[1],
            build.on_device(chunk.decoder_labels[decoder_at], world),
            encoder_count=counts[0],
            decoder_count=counts[1],
        )
        return output

    output = summed_step(engine, len(chunks), loss)
    return output, Counts(batch.texts, batch.tokens, sum(chunk.encoder_ids.numel() for chunk in chunks))


def forward(engine: Engine, chunk: MaskedChunk, world: World) -> tuple[Tensor, Tensor]:
    """Logits of encoder [M, V] and decoder [K, V] at the labelled positions."""
    tensors = (
        chunk.encoder_ids,
        chunk.clean.mask,
        chunk.encoder_labels != -100,
        chunk.clean.ids,
        chunk.decoder_visible,
        chunk.decoder_labels != -100,
    )
    logits: tuple[Tensor, Tensor] = engine.forward(*(build.on_device(tensor, world) for tensor in tensors))
    return logits


def unlabelled(chunk: MaskedChunk) -> MaskedChunk:
    """The same chunk with nothing to predict."""
    nothing = torch.full_like(chunk.encoder_labels, -100)
    return chunk._replace(encoder_labels=nothing, decoder_labels=nothing)


def probe(engine: Engine, batch: Masked, world: World) -> Tensor:
    """A forward pass that reaches every parameter."""
    encoder, decoder = forward(engine, batch.chunks[0], world)
    return encoder.float().sum() + decoder.float().sum()
