"""stage=pairs and stage=finetune: InfoNCE over local queries and the passages of all ranks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bgetrain import distributed
from bgetrain.data import groups
from bgetrain.data.tokenize import chunk, cut, join
from bgetrain.engine import memory
from bgetrain.engine.chunked import cached_step, chunk_seeds, inverse, single_step
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.window import Counts
from bgetrain.stage import build, embed, examples, preflight, results, supply, validation
from bgetrain.target import call
from bgetrain.types import Chunk, Contrast, GroupBatch, LossOutput, Ragged, World


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
    build.need(source.rows, source, cfg, "labelled rows", "data=jsonl, data=beir or data=pydocs")
    rows, body = build.all_of(
        lambda: distributed.after_first(world, lambda: supply.opened(source, lambda each: each.rows)),
        lambda: build.body(cfg, source, world, masked_lm=False),
    )
    width = body.backbone.config.hidden_size
    check(cfg, width)
    found = validation.opened(cfg, source, world)
    supplied = supply.contrastive(cfg, source, rows, body.tokenizer, world)
    guide = embed.guide(cfg, source, world) if cfg["guide_model"] else None
    batch_at = partial(
        groups.group_batch,
        supplied.feeds,
        body.tokenizer,
        guide and guide.tokenizer,
        supplied.plan,
        partial(distributed.share, world=world),
    )
    module = embed.bi_encoder(body, world, learnable_temperature=cfg["loss"]["learnable_temperature"]).train()
    pad_id = None if module.packed else body.tokenizer.pad_token_id
    longest = max(source.query_max_len, source.passage_max_len)
    measured = cfg["step_mode"] == "auto"
    footprint = memory.measure(module, dtype=build.dtype(cfg, world), max_len=longest, world=world) if measured else None
    engine, schedule = build.engine(cfg, module, world)
    first_step = build.resumed(cfg, engine, lambda: probe(engine, batch_at(1), pad_id, world))
    budget = memory.plan(cfg["step_mode"], cfg["memory_limit"], footprint, engine)
    first = batch_at(first_step)
    facts = announced(cfg, supplied, first_step, first, prepare(first, cfg["chunk_tokens"], pad_id, budget, world), world)
    steps, describe = range(first_step, supplied.total_steps + 1), partial(described, supplied.feeds)
    texts = join(first.query, first.passage)
    trial = partial(preflight.embedded, engine, texts, longest, cfg["chunk_tokens"], pad_id, world)
    facts |= preflight.checked(cfg, preflight.Start(engine, body.tokenizer, source.files, steps, first, trial), world)
    held = held_out(cfg, engine, supplied.held, body.tokenizer, guide, pad_id, world) if supplied.held else None
    subject = validation.Subject(engine.core.module, partial(embeddings_of, engine), body.tokenizer, pad_id, width)
    scoring, told = validation.scoring(cfg, source, found, subject, held, supplied.total_steps, world)
    build.announce(cfg, body, engine, supplied.sizes, facts | told, world)
    del first, texts, trial
    look = examples.of_rows(cfg, supplied, subject, world)
    if first_step == 1:  # a run that goes on has looked
        look("before")
    update = partial(update_once, cfg, engine, supplied, pad_id, budget, guide and guide.embed, world)
    figures = build.train(cfg, engine, batch_at, update, steps, schedule, log, world, describe, scoring)
    results.save_model(cfg, engine, body, "backbone.", source, world)
    look("after")
    return {"steps": int(figures["steps"]), "rows": sum(len(feed.rows) for feed in supplied.feeds), "training": figures}


def check(cfg: Mapping[str, Any], width: int) -> None:
    """Holds the model against the loss.

    Raises:
        ValueError: a width that the model has not.
    """
    if max(cfg["loss"]["matryoshka"], default=1) > width:
        raise ValueError(f"loss.matryoshka={cfg['loss']['matryoshka']} exceeds the model's width of {width}")


def announced(
    cfg: Mapping[str, Any], supplied: supply.Supply, first_step: int, batch: GroupBatch, work: "Work", world: World
) -> dict[str, str]:
    """What the run will do, in words.

    Args:
        cfg: of the stage.
        supplied: its data.
        first_step: counted from 1.
        batch: this rank's, of that step.
        work: the same as it is taken.
        world: all ranks.
    """
    size = supplied.plan.size(first_step)
    own = len(distributed.share(size, world))
    facts = dict(supplied.facts)
    if len(supplied.feeds) == 1:
        pool = cfg["loss"]["negatives"]
        negatives = {"world": size, "rank": own, "group": 1}[pool] * cfg["group_size"] - 1
        facts["per query"] = f"1 positive, {negatives:,} negatives ({pool}), group size {cfg['group_size']}"
    feeds = [supplied.feeds[number] for number in batch.sources.tolist()]
    limits = [each.query_max_len for each in feeds], [each.passage_max_len for each in feeds for _ in range(each.group_size)]
    sides = zip((batch.query, batch.passage), limits, strict=True)
    full = [float((text.lengths >= torch.tensor(limit)).float().mean()) for text, limit in sides]
    if max(full) > 0:
        facts["as long as allowed"] = f"{full[0]:.0%} of the queries, {full[1]:.0%} of the passages of this batch, or cut"
    epochs = supplied.plan.epoch(supplied.total_steps + 1)
    return facts | {
        "tokens per step": f"about {work.tokens * size // own:,}",
        "steps": f"{first_step} to {supplied.total_steps} ({epochs:.2f} epochs)",
        "step mode": f"{work.mode}: {work.reason}" if work.reason else work.mode,
    }


def update_once(
    cfg: Mapping[str, Any],
    engine: Engine,
    supplied: supply.Supply,
    pad_id: int | None,
    budget: memory.Budget,
    guide: Callable[[Ragged], Tensor] | None,
    world: World,
    step: int,
    batch: GroupBatch,
) -> tuple[LossOutput, Counts]:
    """One step's loss and gradient, that of one process on the whole global batch."""
    work = prepare(batch, cfg["chunk_tokens"], pad_id, budget, world)
    num_queries = len(batch.query.lengths)
    guided = guide and batch.guide and (guide(batch.guide[0]), guide(batch.guide[1]))
    keys = supplied.losses[batch.source or 0]

    def loss(embeddings: Tensor, shift: Tensor | None) -> LossOutput:
        output = compared(keys, batch, embeddings, shift, guided, world)
        if batch.source is not None and len(supplied.feeds) > 1:
            output.metrics[f"loss/{supplied.feeds[batch.source].name}"] = output.loss.detach()
        return output._replace(faults=blame(embeddings, num_queries, output.faults))

    take = {"single": single_step, "cached": cached_step}[work.mode]
    chunks = [tuple(build.on_device(tensor, world) for tensor in each) for each in work.chunks]
    output = take(engine, chunks, work.order.to(world.device), chunk_seeds(cfg["seed"], step, world.rank, len(chunks)), loss)
    return output, Counts(num_queries, work.tokens, sum(each.ids.numel() for each in work.chunks))


def compared(
    keys: Mapping[str, Any],
    batch: GroupBatch,
    embeddings: Tensor,
    shift: Tensor | None,
    guided: tuple[Tensor, Tensor] | None,
    world: World,
) -> LossOutput:
    """The loss of a batch from its embeddings [B + B * G, D], queries first."""
    query, passage = embeddings[: len(batch.query.lengths)], embeddings[len(batch.query.lengths) :]
    contrast = Contrast(query, passage, batch.keys, build.on_device(batch.teacher, world), guided, shift)
    output: LossOutput = call(keys, contrast, counts=distributed.shares(batch.size, world), world=world)
    return output


class Work(NamedTuple):
    """A batch as one step takes it.

    Attributes:
        chunks: as many on each rank.
        order: int64 [N], which text (queries first) each row of the chunks is.
        tokens: of all texts.
        mode: single | cached, the same on each rank.
        reason: in words; empty where the mode is given.
    """

    chunks: list[Chunk | Ragged]
    order: Tensor
    tokens: int
    mode: str
    reason: str


def prepare(batch: GroupBatch, chunk_tokens: int, pad_id: int | None, budget: memory.Budget, world: World) -> Work:
    """Cuts all texts of a batch into chunks, and agrees with the other ranks on their number and the mode."""
    text = join(batch.query, batch.passage)
    members = cut(text.lengths, chunk_tokens, padded=pad_id is not None)
    chunks = [chunk(text, each, pad_id) for each in members]
    mode, most, reason = memory.agree(budget, chunks, world)
    # a forward under ZeRO-3 and a backward under ZeRO-2 are collective: ranks with fewer chunks repeat a text for nothing
    idle = [chunk(text, torch.tensor([0]), pad_id)] * (most - len(chunks))
    return Work(chunks + idle, torch.cat(members), len(text.ids), mode, reason)


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


def described(feeds: Sequence[groups.Feed], batch: GroupBatch, places: list[int]) -> list[dict[str, Any]]:
    """The rows of the data set at `places` of a batch, as people look for them."""
    found = []
    for source, number in zip(batch.sources[places].tolist(), batch.rows[places].tolist(), strict=True):
        rows = feeds[source].rows
        row = rows.take([number])[0]
        found.append({"where": rows.where(number), "query": row.query, "pos": list(row.positives), "neg": list(row.negatives)})
    return found


def probe(engine: Engine, batch: GroupBatch, pad_id: int | None, world: World) -> Tensor:
    """A forward pass that reaches every parameter."""
    one = chunk(batch.query, torch.tensor([0]), pad_id)
    embeddings, shift = engine.forward([0], *(build.on_device(tensor, world) for tensor in one))
    return embeddings.sum() if shift is None else embeddings.sum() + shift.sum()


def embeddings_of(engine: Engine, *chunk: Tensor | None) -> Tensor:
    """Of the texts of a chunk, [N, D]."""
    embeddings: Tensor = engine.forward(None, *chunk)[0]
    return embeddings


class HeldBatch(NamedTuple):
    """Held-out rows that are compared with each other.

    Attributes:
        name: of their source.
        keys: of its loss.
        batch: this rank's share of them.
        work: that, in chunks.
        guided: a guide's embeddings of it; None: there is no guide.
    """

    name: str
    keys: Mapping[str, Any]
    batch: GroupBatch
    work: Work
    guided: tuple[Tensor, Tensor] | None


def held_out(
    cfg: Mapping[str, Any],
    engine: Engine,
    held: Sequence[supply.Held],
    tokenizer: Any,
    guide: embed.Guide | None,
    pad_id: int | None,
    world: World,
) -> validation.HeldOut:
    """Makes the batches of held-out rows, which are the same each time, and what scores them."""
    budget = memory.Budget(None, 0, "", "cached")
    part, found = partial(distributed.share, world=world), []
    for each in held:
        for number in range(1, len(each.batches) + 1):
            batch = groups.group_batch([each.feed], tokenizer, guide and guide.tokenizer, each.batches, part, number)
            work = prepare(batch, cfg["chunk_tokens"], pad_id, budget, world)
            guided = (guide.embed(batch.guide[0]), guide.embed(batch.guide[1])) if guide and batch.guide else None
            found.append(HeldBatch(each.feed.name, each.loss, batch, work, guided))
    return validation.HeldOut(partial(held_out_figures, engine, found, world), sum(each.batches.count for each in held), "rows")


def held_out_figures(engine: Engine, held: Sequence[HeldBatch], world: World) -> dict[str, float]:
    """Loss and metrics as training has them, averaged over all held-out rows; `held_out_loss/NAME` over those of one source."""
    sums: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}  # rows that each figure is averaged over
    several = len({each.name for each in held}) > 1
    for each in held:
        chunks = [tuple(build.on_device(tensor, world) for tensor in chunk) for chunk in each.work.chunks]
        parts, shifts = zip(*(engine.forward(None, *chunk) for chunk in chunks), strict=True)
        embeddings = torch.cat(parts)[inverse(each.work.order.to(world.device))]
        output = compared(each.keys, each.batch, embeddings, shifts[0], each.guided, world)
        figures = {"loss": output.loss, **output.metrics} | ({f"loss/{each.name}": output.loss} if several else {})
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value.double() * each.batch.size
            sizes[name] = sizes.get(name, 0) + each.batch.size
    total = distributed.sum_over_ranks(torch.stack([value.cpu() for value in sums.values()]), world).tolist()
    return {f"held_out_{name}": value / sizes[name] for name, value in zip(sums, total, strict=True)}
