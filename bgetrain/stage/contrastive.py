"""stage=pairs and stage=finetune: InfoNCE over local queries and the passages of all ranks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.data import groups
from bgetrain.data.tokenize import chunk, cut, join
from bgetrain.engine import memory
from bgetrain.engine.chunked import cached_step, chunk_seeds, single_step
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.loop import Counts
from bgetrain.logger import console
from bgetrain.stage import build, embed
from bgetrain.target import call
from bgetrain.types import Chunk, Contrast, GroupBatch, LossOutput, Ragged, Rows, World


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
    module = embed.bi_encoder(body, world, learnable_temperature=cfg["loss"]["learnable_temperature"]).train()
    pad_id = None if module.packed else body.tokenizer.pad_token_id
    longest = max(source.query_max_len, source.passage_max_len)
    measured = cfg["step_mode"] == "auto"
    footprint = memory.measure(module, dtype=build.dtype(cfg, world), max_len=longest, world=world) if measured else None
    engine, schedule = build.engine(cfg, module, world)
    first_step = build.resumed(cfg, engine, lambda: probe(engine, batch_at(1), pad_id, world))
    budget = memory.plan(cfg["step_mode"], cfg["memory_limit"], footprint, engine)
    update = partial(update_once, cfg, engine, pad_id, budget, guide and guide.embed, world)
    pool = cfg["loss"]["negatives"]
    negatives = {"world": cfg["global_batch"], "rank": len(part), "group": 1}[pool] * cfg["group_size"] - 1
    num_tokens, mode = foreseen(batch_at(first_step), budget, cfg["chunk_tokens"], pad_id, world)
    epochs = total_steps * cfg["global_batch"] / len(rows)
    build.announce(
        cfg,
        body,
        engine,
        world,
        {
            "data": f"{len(rows):,} rows of {source.name}",
            "per query": f"1 positive, {negatives:,} negatives ({pool}), group size {cfg['group_size']}",
            "tokens per step": f"about {num_tokens * cfg['global_batch'] // len(part):,}",
            "steps": f"{first_step} to {total_steps} ({epochs:.2f} epochs)",
            "step mode": mode,
        },
    )
    steps, describe = range(first_step, total_steps + 1), partial(described, rows)
    figures = build.train(cfg, engine, batch_at, update, steps, schedule, log, world, describe)
    build.save_model(cfg, engine, body, "backbone.", source, world)
    return {"steps": total_steps, "rows": len(rows), "training": figures}


def foreseen(batch: GroupBatch, budget: memory.Budget, chunk_tokens: int, pad_id: int | None, world: World) -> tuple[int, str]:
    """This rank's tokens in a batch, and in words how a step of it is done."""
    text = join(batch.query, batch.passage)
    mode, _, reason = memory.agree(budget, laid_out(text, chunk_tokens, pad_id)[0], world)
    return len(text.ids), f"{mode}: {reason}" if reason else mode


def update_once(
    cfg: Mapping[str, Any],
    engine: Engine,
    pad_id: int | None,
    budget: memory.Budget,
    guide: Callable[[Ragged], Tensor] | None,
    world: World,
    step: int,
    batch: GroupBatch,
) -> tuple[LossOutput, Counts]:
    """One step's loss and gradient, that of one process on the whole global batch."""
    text = join(batch.query, batch.passage)
    chunks, place = laid_out(text, cfg["chunk_tokens"], pad_id)
    place = place.to(world.device)
    mode, most, _ = memory.agree(budget, chunks, world)
    # a forward under ZeRO-3 and a backward under ZeRO-2 are collective: ranks with fewer chunks repeat a text for nothing
    chunks += [chunk(text, torch.tensor([0]), pad_id)] * (most - len(chunks))
    num_queries = len(batch.query.lengths)
    guided = guide and batch.guide and (guide(batch.guide[0]), guide(batch.guide[1]))

    def loss(embeddings: Tensor, shift: Tensor | None) -> LossOutput:
        in_order = embeddings[place]  # [B + B * G, D], queries first
        teacher = build.on_device(batch.teacher, world)
        contrast = Contrast(in_order[:num_queries], in_order[num_queries:], batch.keys, teacher, guided, shift)
        output: LossOutput = call(cfg["loss"], contrast, counts=distributed.shares(cfg["global_batch"], world), world=world)
        unused = torch.nan_to_num(embeddings[len(place) :], 0.0, 0.0, 0.0)  # a repeated text's fault is its own row's
        return output._replace(loss=output.loss + 0.0 * unused.sum(), faults=blame(in_order, num_queries, output.faults))

    take = {"single": single_step, "cached": cached_step}[mode]
    tensors = [tuple(build.on_device(tensor, world) for tensor in each) for each in chunks]
    output = take(engine, tensors, chunk_seeds(cfg["seed"], step, world.rank, len(chunks)), loss)
    return output, Counts(num_queries, len(text.ids), sum(each.ids.numel() for each in chunks))


def laid_out(text: Ragged, chunk_tokens: int, pad_id: int | None) -> tuple[list[Chunk | Ragged], Tensor]:
    """Chunks of all texts, and where each text stands in their order."""
    groups_of_texts = cut(text.lengths, chunk_tokens, padded=pad_id is not None)
    order = torch.cat(groups_of_texts)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return [chunk(text, group, pad_id) for group in groups_of_texts], place


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


def probe(engine: Engine, batch: GroupBatch, pad_id: int | None, world: World) -> Tensor:
    """A forward pass that reaches every parameter."""
    one = chunk(batch.query, torch.tensor([0]), pad_id)
    embeddings, shift = engine.forward([0], *(build.on_device(tensor, world) for tensor in one))
    return embeddings.sum() if shift is None else embeddings.sum() + shift.sum()
