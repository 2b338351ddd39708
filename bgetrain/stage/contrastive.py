"""stage=pairs and stage=finetune: InfoNCE over local queries and the passages of all ranks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.data import groups
from bgetrain.data.tokenize import chunk, cut, join
from bgetrain.engine.chunked import cached_step, chunk_seeds, single_step
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.loop import Counts
from bgetrain.logger import console
from bgetrain.stage import build, embed
from bgetrain.target import call
from bgetrain.types import Contrast, GroupBatch, LossOutput, Ragged, World


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Trains a bi-encoder and leaves it in `output_dir/model`.

    Args:
        cfg: the resolved config, as `conf/stage/pairs.yaml` and `finetune.yaml` have it.
        world: all ranks.
        log: called on rank 0.

    Returns:
        Figures for `result.json`.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    source = build.source(cfg, world)
    open_rows = build.need(source.rows, source, cfg, "labelled rows", "data=jsonl, data=beir or data=pydocs")
    rows, body = build.all_of(lambda: build.first(world, open_rows), lambda: build.body(cfg, source, world, masked_lm=False))
    if cfg["global_batch"] > len(rows):
        raise ValueError(
            f"global_batch={cfg['global_batch']} exceeds the {len(rows)} rows of {source.name}: a row would stand in its own "
            f"batch twice, as its own negative; use global_batch={len(rows)} or less"
        )
    groups.check_groups(rows, source, cfg["group_size"], console.say if world.rank == 0 else lambda _: None)
    plan, total_steps = build.plan(cfg, len(rows), world)
    part = distributed.share(cfg["global_batch"], world)
    guide = embed.guide(cfg, source, world) if cfg["guide_model"] else None
    batch_at = groups.group_batches(
        rows,
        source,
        body.tokenizer,
        plan,
        part,
        group_size=cfg["group_size"],
        keyed=cfg["loss"]["mask_equal"],
        scored=cfg["loss"]["teacher"] != "none",
        guide=guide and guide.tokenizer,
    )
    module = embed.bi_encoder(body, world, learnable_temperature=cfg["loss"]["learnable_temperature"])
    pad_id = None if module.packed else body.tokenizer.pad_token_id
    engine, schedule = build.engine(cfg, module, world)
    update = partial(update_once, cfg, engine, pad_id, world, guide=guide and guide.embed)
    first_step = build.resumed(cfg, engine, lambda: probe(engine, batch_at(1), pad_id, world))
    pool = cfg["loss"]["negatives"]
    negatives = {"world": cfg["global_batch"], "rank": len(part), "group": 1}[pool] * cfg["group_size"] - 1
    batch, epochs = batch_at(first_step), total_steps * cfg["global_batch"] / len(rows)
    tokens = int(batch.query.lengths.sum() + batch.passage.lengths.sum())
    build.announce(
        cfg,
        body,
        engine,
        world,
        {
            "data": f"{len(rows):,} rows of {source.name}",
            "per query": f"1 positive, {negatives:,} negatives ({pool}), group size {cfg['group_size']}",
            "tokens per step": f"about {tokens * cfg['global_batch'] // len(part):,}",
            "steps": f"{first_step} to {total_steps} ({epochs:.2f} epochs), {cfg['step_mode']}",
        },
    )
    figures = build.train(cfg, engine, batch_at, update, range(first_step, total_steps + 1), schedule, log, world)
    build.save_model(cfg, engine, body, "backbone.", source, world)
    return {"steps": total_steps, "rows": len(rows), "training": figures}


def update_once(
    cfg: Mapping[str, Any],
    engine: Engine,
    pad_id: int | None,
    world: World,
    step: int,
    batch: GroupBatch,
    guide: Callable[[Ragged], Tensor] | None = None,
) -> tuple[LossOutput, Counts]:
    """One step's loss and gradient, that of one process on the whole global batch."""
    text = join(batch.query, batch.passage)
    groups_of_texts = cut(text.lengths, cfg["chunk_tokens"], padded=pad_id is not None)
    # a forward under ZeRO-3 and a backward under ZeRO-2 are collective: ranks with fewer chunks repeat a text for nothing
    missing = distributed.max_over_ranks(len(groups_of_texts), world) - len(groups_of_texts)
    chunks = [chunk(text, group, pad_id) for group in [*groups_of_texts, *[torch.tensor([0])] * missing]]
    place = inverse(torch.cat(groups_of_texts)).to(world.device)
    num_queries = len(batch.query.lengths)
    guided = guide and batch.guide and (guide(batch.guide[0]), guide(batch.guide[1]))

    def loss(embeddings: Tensor, shift: Tensor | None) -> LossOutput:
        in_order = embeddings[place]  # [B + B * G, D], queries first
        contrast = Contrast(
            in_order[:num_queries],
            in_order[num_queries:],
            batch.keys,
            build.on_device(batch.teacher, world),
            guided,
            shift,
        )
        output: LossOutput = call(cfg["loss"], contrast, counts=distributed.shares(cfg["global_batch"], world), world=world)
        return output._replace(loss=output.loss + 0.0 * embeddings[len(place) :].sum())

    take = {"single": single_step, "cached": cached_step}[cfg["step_mode"]]
    tensors = [tuple(build.on_device(tensor, world) for tensor in each) for each in chunks]
    output = take(engine, tensors, chunk_seeds(cfg["seed"], step, world.rank, len(chunks)), loss)
    return output, Counts(num_queries, int(text.lengths.sum()), sum(each.ids.numel() for each in chunks))


def inverse(order: Tensor) -> Tensor:
    """Where each text stands in `order`."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return place


def probe(engine: Engine, batch: GroupBatch, pad_id: int | None, world: World) -> Tensor:
    """A forward pass that reaches every parameter."""
    one = chunk(batch.query, torch.tensor([0]), pad_id)
    embeddings, shift = engine.forward([0], *(build.on_device(tensor, world) for tensor in one))
    return embeddings.sum() if shift is None else embeddings.sum() + shift.sum()
