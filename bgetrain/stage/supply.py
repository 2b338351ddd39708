"""What a training stage trains on: the sources of its data, their batches and their order."""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from bgetrain import distributed
from bgetrain.data import buckets, mixture
from bgetrain.data.files import fingerprint
from bgetrain.data.groups import Feed, check_groups
from bgetrain.data.held_out import Batches, held_out
from bgetrain.data.order import hashed
from bgetrain.data.plan import Plan
from bgetrain.data.texts import TextFeed, Tokens, Truncated
from bgetrain.data.tokenize import join
from bgetrain.logger import console
from bgetrain.sources import Mix, Part, Rows, Source, Texts
from bgetrain.stage import build, documents, embed
from bgetrain.types import TextBatch, World

T = TypeVar("T")
S = TypeVar("S", Rows, Texts)


class Held(NamedTuple):
    """Rows of one source that are held out.

    Attributes:
        feed: all rows of the source: those that stand in for negatives come from anywhere in it.
        loss: its keys.
        batches: which rows are scored together.
    """

    feed: Feed
    loss: Mapping[str, Any]
    batches: Batches


class Supply(NamedTuple):
    """What is trained on, in which order.

    Attributes:
        feeds: one for each stream of the plan; `Feed` or, for pre-training, `TextFeed`.
        losses: of each feed, the keys of its loss; none for pre-training.
        plan: the order.
        total_steps: of the run.
        facts: to state before the first step.
        sizes: of the global batches, smallest and largest.
        held: of each source, what is kept back from training; none where nothing is, or for pre-training.
    """

    feeds: list[Any]
    losses: list[Mapping[str, Any]]
    plan: Plan
    total_steps: int
    facts: dict[str, str]
    sizes: tuple[int, int]
    held: Sequence[Held] = ()


def mix_of(source: Source) -> Mix:
    """The parts of a mixture; a single source is a mixture of one."""
    return source.mix or Mix([Part(source.name, source)], "source", 1.0)


def opened(source: Source, opener: Callable[[Source], Callable[[], T] | None]) -> list[T]:
    """Opens a kind of data of each part.

    Raises:
        ValueError: what opening raises; names the part of a mixture.
    """
    found = []
    for part in mix_of(source).parts:
        make = opener(part.source)
        assert make is not None
        try:
            found.append(make())
        except ValueError as error:
            raise ValueError(f"data.sources.{part.name}: {error}" if source.mix else str(error)) from error
    return found


def contrastive(cfg: build.Config, source: Source, rows: Sequence[Rows], tokenizer: Any, world: World) -> Supply:
    """Feeds of labelled rows, one for each source and each of its length buckets.

    Args:
        cfg: of the stage.
        source: a mixture or a single source.
        rows: of each part.
        tokenizer: by which lengths are measured.
        world: all ranks.

    Raises:
        ValueError: a batch that its source cannot fill, groups without negatives or scores.
    """
    mix = mix_of(source)
    feeds: list[Feed] = []
    losses: list[Mapping[str, Any]] = []
    shapes: list[mixture.Bucket] = []
    held: list[Held] = []
    for number, (part, all_rows) in enumerate(zip(mix.parts, rows, strict=True)):
        build.tell(all_rows, world)
        own, kept = kept_back(cfg, part, all_rows, "rows", world)
        loss = {**cfg["loss"], **part.loss}
        feed = Feed(
            part.name,
            own,
            part.source.query_max_len,
            part.source.passage_max_len,
            part.source.query_instruction,
            part.source.missing_negatives,
            part.group_size or cfg["group_size"],
            loss["mask_equal"],
            loss["teacher"] != "none",
            part.symmetric,
        )
        check_groups(feed, console.say if world.rank == 0 else lambda _: None)
        if kept is not None:
            seed = int(hashed(cfg["seed"], number) >> np.uint64(1))
            batches = Batches(len(all_rows), len(kept), part.global_batch or cfg["global_batch"], seed)
            check_negatives(feed, loss, len(kept) // len(batches), f"evaluate.held_out={len(kept)}", world)
            held.append(Held(feed._replace(rows=all_rows), loss, batches))
        for name, chosen, batch in bucketed(cfg, part, feed, tokenizer, world):
            feeds.append(feed._replace(name=name, rows=chosen))
            losses.append(loss)
            shapes.append(mixture.Bucket(number, len(chosen), batch))
    if mix.batches == "mixed" and len({(feed.group_size, feed.symmetric) for feed in feeds}) > 1:
        raise ValueError("data.batches=mixed makes one batch of all sources: group_size and symmetric must be alike for them")
    made = supplied(cfg, mix, feeds, losses, shapes, "rows")
    for number, (feed, shape) in enumerate(zip(feeds, shapes, strict=True)):
        check_batch(cfg, mix.parts[shape.part], feed, made.plan.most(number), losses[number], world)
    return made._replace(held=held)


def pretraining(
    cfg: build.Config, source: Source, texts: Sequence[Texts], tokenizer: Any, world: World
) -> tuple[Supply, TextBatch | None]:
    """Feeds of texts, one for each source, and this rank's share of those that are held out.

    Args:
        cfg: of the stage.
        source: a mixture or a single source.
        texts: of each part.
        tokenizer: of the model.
        world: all ranks.

    Raises:
        ValueError: fewer texts in a step than ranks, or no more texts than are held out.
    """
    mix = mix_of(source)
    feeds, shapes, held = [], [], []
    told: dict[str, str] = {}
    for number, part in enumerate(mix.parts):
        own, max_len = texts[number], part.source.passage_max_len
        build.tell(own, world)
        batch = part.global_batch or cfg["global_batch"]
        check_ranks(batch, f"data.sources.{part.name}.global_batch" if part.global_batch else "global_batch", world)
        own, kept = kept_back(cfg, part, own, "texts", world)
        held += [] if kept is None else [Truncated(kept, tokenizer, max_len)]
        tokens = documents.opened(cfg, part, own, tokenizer, world)
        told |= {f"{name} of {part.name}" if source.mix else name: fact for name, fact in tokens.facts.items()}
        feeds.append(TextFeed(part.name, tokens))
        shapes.append(mixture.Bucket(number, len(tokens), batch))
    made = supplied(cfg, mix, feeds, [], shapes, "texts" if cfg["documents"]["cut"] == "truncate" else "spans")
    return made._replace(facts=made.facts | told), share_of(held, world) if held else None


def kept_back(cfg: build.Config, part: Part, items: S, what: str, world: World) -> tuple[S, S | None]:
    """What of a source is trained on, and what is held out of it; None: nothing is.

    Raises:
        ValueError: fewer are to be held out than there are ranks, or more than the source can spare.
    """
    count = cfg["evaluate"]["held_out"]
    if cfg["evaluate"]["every"] is None or not count:
        return items, None
    check_ranks(count, "evaluate.held_out", world)
    try:
        return held_out(items, count, what=what)
    except ValueError as error:
        raise ValueError(f"evaluate.held_out={count}: of {part.name} {error}") from error


def share_of(held: Sequence[Tokens], world: World) -> TextBatch:
    """This rank's part of the held-out texts of all sources, as a batch that is the same each time."""
    starts = np.cumsum([0, *map(len, held)])
    own = distributed.share(int(starts[-1]), world)
    found = []
    for first, tokens in zip(starts.tolist(), held, strict=False):
        places = [place - first for place in own if 0 <= place - first < len(tokens)]
        found += [tokens.take(places)] if places else []
    return TextBatch(join(*(text for text, _ in found)), torch.cat([words for _, words in found]), torch.tensor(list(own)), 0.0)


def bucketed(cfg: build.Config, part: Part, feed: Feed, tokenizer: Any, world: World) -> list[tuple[str, Rows, int]]:
    """Name, rows and global batch of each length bucket of a part; of all its rows where there are no buckets."""
    global_batch = part.global_batch or cfg["global_batch"]
    if not cfg["length_buckets"]:
        return [(part.name, feed.rows, global_batch)]
    budget = cfg["batch_tokens"]

    def batch_of(limit: int) -> int:
        tokens = min(limit, feed.query_max_len) + feed.group_size * min(limit, feed.passage_max_len)
        return int(global_batch if budget is None else max(1, budget // tokens))

    facts = [fingerprint(part.source.files), tokenizer.backend_tokenizer.to_str(), *feed[2:5], feed.symmetric, len(feed.rows)]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    lengths = measured(Path(cfg["output_dir"]) / "lengths" / f"{name}.npy", feed, tokenizer, world)
    found = buckets.split(lengths, cfg["length_buckets"], batch_of)
    return [(f"{part.name}:{limit}", buckets.Subset(feed.rows, numbers), batch_of(limit)) for limit, numbers in found]


def measured(path: Path, feed: Feed, tokenizer: Any, world: World) -> np.ndarray:
    """int32 [N], tokens of each row's longest text; measured over all ranks and kept at `path`."""
    known = distributed.from_first(np.load(path) if world.rank == 0 and path.is_file() else None, world)
    if known is not None:
        return np.asarray(known)
    part = distributed.share(len(feed.rows), world)
    with embed.track(f"lengths of {feed.name}", len(feed.rows), world) as advance:
        own = buckets.longest_texts(feed, tokenizer, part, lambda count: advance(count * world.size))
    found = distributed.gather_arrays(own, world)
    if world.rank == 0:
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(f".{path.name}")
        np.save(beside, found)
        beside.replace(path)
    return found


def check_batch(cfg: build.Config, part: Part, feed: Feed, batch: int, loss: Mapping[str, Any], world: World) -> None:
    """Holds a global batch against rows, ranks and loss.

    Raises:
        ValueError: the first that does not fit.
    """
    key = f"data.sources.{part.name}.global_batch" if part.global_batch else "global_batch"
    if feed.name != part.name and cfg["batch_tokens"] is not None:
        key = f"batch_tokens={cfg['batch_tokens']}: global batch"
    if batch > len(feed.rows):
        raise ValueError(
            f"{key}={batch} exceeds the {len(feed.rows)} rows of {feed.name}: a row would stand in its own "
            f"batch twice, as its own negative; use {key}={len(feed.rows)} or less"
        )
    check_ranks(batch, key, world)
    if loss["negatives"] == "group" and feed.group_size == 1:
        raise ValueError(f"{feed.name} has the negatives of its own rows alone, and group_size=1 takes none: use 2 or more")
    check_negatives(feed, loss, batch, "global_batch", world)


def check_negatives(feed: Feed, loss: Mapping[str, Any], batch: int, key: str, world: World) -> None:
    """Holds a global batch against the passages that its queries are compared with.

    Raises:
        ValueError: a query would have no negative.
    """
    least = min(distributed.shares(batch, world)) if loss["negatives"] == "rank" else batch
    if feed.group_size == 1 and least == 1:
        whose = "a rank with one query" if loss["negatives"] == "rank" else "a query"
        raise ValueError(f"loss.negatives={loss['negatives']} leaves {whose} no negative: raise {key} or group_size")


def check_ranks(batch: int, key: str, world: World) -> None:
    if batch < world.size:
        raise ValueError(f"{key}={batch} is below the {world.size} ranks: each needs at least one")


def supplied(
    cfg: build.Config, mix: Mix, feeds: list[Any], losses: list[Mapping[str, Any]], shapes: Sequence[mixture.Bucket], what: str
) -> Supply:
    """Puts the feeds in their order and counts the steps."""
    # stages of one recipe share a seed: without the name each would begin with the rows that the one before had seen
    seed = np.random.SeedSequence([cfg["seed"], zlib.crc32(cfg["stage"]["name"].encode())]).generate_state(1)[0]
    plan = mixture.plan(mix, shapes, int(seed))
    batches = [shape.batch for shape in shapes]
    total_steps = cfg["total_steps"] or plan.steps(cfg["epochs"])
    return Supply(feeds, losses, plan, total_steps, facts(feeds, shapes, plan, what), (min(batches), max(batches)))


def facts(feeds: Sequence[Any], shapes: Sequence[mixture.Bucket], plan: Plan, what: str) -> dict[str, str]:
    """The data in words: one line, or one for each source."""
    if len(shapes) == 1:
        return {"data": f"{shapes[0].rows:,} {what} of {feeds[0].name}"}
    unit = f"the {what} of a batch" if plan.mixed else "the steps"
    return {
        f"data {feed.name}": f"{shape.rows:,} {what}, {portion:.1%} of {unit}, global batch {shape.batch:,}"
        for feed, shape, portion in zip(feeds, shapes, plan.portions.tolist(), strict=True)
    }
