"""stage=pairs and stage=finetune: InfoNCE over local queries and the passages of all ranks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.data import groups
from bgetrain.data.tokenize import cut, join, pad
from bgetrain.engine import memory
from bgetrain.engine.chunked import cached_step, chunk_seeds, single_step
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.loop import Counts
from bgetrain.logger import console
from bgetrain.model.bi_encoder import BiEncoder
from bgetrain.stage import build
from bgetrain.target import call
from bgetrain.types import GroupBatch, LossOutput, Rows, World


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
    rows, body = build.all_of(lambda: build.first(world, open_rows), lambda: build.body(cfg, source, masked_lm=False))
    if cfg["global_batch"] > len(rows):
        raise ValueError(
            f"global_batch={cfg['global_batch']} exceeds the {len(rows)} rows of {source.name}: a row would stand in its own "
            f"batch twice, as its own negative; use global_batch={len(rows)} or less"
        )
    groups.check_groups(rows, source, cfg["group_size"], console.say if world.rank == 0 else lambda _: None)
    plan, total_steps = build.plan(cfg, len(rows), world)
    part = distributed.share(cfg["global_batch"], world)
    batch_at = groups.group_batches(rows, source, body.tokenizer, plan, part, group_size=cfg["group_size"])
    module = BiEncoder(body.backbone, body.pooling).train()
    longest = max(source.query_max_len, source.passage_max_len)
    measured = cfg["step_mode"] == "auto"
    footprint = memory.measure(module, dtype=build.dtype(cfg, world), max_len=longest, world=world) if measured else None
    engine, schedule = build.engine(cfg, module, world)
    first_step = build.resumed(cfg, engine, lambda: probe(engine, batch_at(1), world))
    budget = memory.plan(cfg["step_mode"], cfg["memory_limit"], footprint, engine)
    update = partial(update_once, cfg, engine, body.tokenizer.pad_token_id, budget, world)
    pool = cfg["loss"]["negatives"]
    negatives = {"world": cfg["global_batch"], "rank": len(part), "group": 1}[pool] * cfg["group_size"] - 1
    first, epochs = batch_at(first_step), total_steps * cfg["global_batch"] / len(rows)
    lengths = torch.cat([first.query.lengths, first.passage.lengths])
    shapes = [(len(group), int(lengths[group].max())) for group in cut(lengths, cfg["chunk_tokens"])]
    mode, _, reason = memory.agree(budget, shapes, world)
    build.announce(
        cfg,
        body,
        engine,
        world,
        {
            "data": f"{len(rows):,} rows of {source.name}",
            "per query": f"1 positive, {negatives:,} negatives ({pool}), group size {cfg['group_size']}",
            "tokens per step": f"about {int(lengths.sum()) * cfg['global_batch'] // len(part):,}",
            "steps": f"{first_step} to {total_steps} ({epochs:.2f} epochs)",
            "step mode": f"{mode}: {reason}" if reason else mode,
        },
    )
    steps, describe = range(first_step, total_steps + 1), partial(described, rows)
    figures = build.train(cfg, engine, batch_at, update, steps, schedule, log, world, describe)
    build.save_model(cfg, engine, body, "backbone.", source, world)
    return {"steps": total_steps, "rows": len(rows), "training": figures}


def update_once(
    cfg: Mapping[str, Any], engine: Engine, pad_id: int, budget: memory.Budget, world: World, step: int, batch: GroupBatch
) -> tuple[LossOutput, Counts]:
    """One step's loss and gradient, that of one process on the whole global batch."""
    text = join(batch.query, batch.passage)
    groups_of_texts = cut(text.lengths, cfg["chunk_tokens"])
    # a forward under ZeRO-3 and a backward under ZeRO-2 are collective: ranks with fewer chunks repeat a text for nothing
    chunks = [pad(text, group, pad_id) for group in groups_of_texts]
    mode, most, _ = memory.agree(budget, [chunk.ids.shape for chunk in chunks], world)
    chunks += [pad(text, torch.tensor([0]), pad_id)] * (most - len(chunks))
    order = torch.cat(groups_of_texts)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    place = place.to(world.device)
    num_queries = len(batch.query.lengths)

    def loss(embeddings: Tensor) -> LossOutput:
        in_order = embeddings[place]  # [B + B * G, D], queries first
        output: LossOutput = call(
            cfg["loss"],
            in_order[:num_queries],
            in_order[num_queries:],
            counts=distributed.shares(cfg["global_batch"], world),
            world=world,
        )
        unused = torch.nan_to_num(embeddings[len(place) :], 0.0, 0.0, 0.0)  # a repeated text's fault is its own row's
        return output._replace(loss=output.loss + 0.0 * unused.sum(), faults=blame(in_order, num_queries, output.faults))

    take = {"single": single_step, "cached": cached_step}[mode]
    tensors = [(build.on_device(chunk.ids, world), build.on_device(chunk.mask, world)) for chunk in chunks]
    output = take(engine, tensors, chunk_seeds(cfg["seed"], step, world.rank, len(chunks)), loss)
    return output, Counts(num_queries, int(text.lengths.sum()), sum(chunk.ids.numel() for chunk in chunks))


def blame(embeddings: Tensor, num_queries: int, faults: Tensor | None) -> Tensor:
    """Grades queries for a loss that is not finite: 2 where an embedding of their own is not, 1 where their loss is not.

    Args:
        embeddings: [B + B * G, D], queries first.
        num_queries: B.
        faults: bool [B], as the loss has it.

    Returns:
        uint8 [B], on the device.
    """
    finite = embeddings.detach().isfinite().all(1)
    own = finite[:num_queries] & finite[num_queries:].view(num_queries, -1).all(1)
    return torch.maximum(2 * (~own).byte(), torch.zeros_like(own).byte() if faults is None else faults.byte())


def described(rows: Rows, batch: GroupBatch, places: list[int]) -> list[dict[str, Any]]:
    """The rows of the data set at `places` of a batch, as people look for them."""
    numbers = batch.rows[places].tolist()
    return [
        {"where": rows.where(number), "query": row.query, "pos": list(row.positives), "neg": list(row.negatives)}
        for number, row in zip(numbers, rows.take(numbers), strict=True)
    ]


def probe(engine: Engine, batch: GroupBatch, world: World) -> Tensor:
    """A forward pass that reaches every parameter."""
    ids = batch.query.ids[None, : int(batch.query.lengths[0])]
    return engine.forward([0], build.on_device(ids, world), None).sum()
