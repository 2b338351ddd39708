"""What several stages make from a config: data, model, engine, and the words before the first step."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from bgetrain import distributed, output, rules
from bgetrain.data import tokenize as tokens
from bgetrain.data.files import fingerprint
from bgetrain.engine import checkpoint
from bgetrain.logger import console
from bgetrain.model.body import Body, load_tokenizer
from bgetrain.sources import Source, Texts
from bgetrain.target import call
from bgetrain.types import LossOutput, World

if TYPE_CHECKING:  # deepspeed takes seconds to import, and whoever only embeds has no use for it
    from bgetrain.engine.best import Scoring
    from bgetrain.engine.deepspeed import Engine
    from bgetrain.engine.window import Counts

Config = Mapping[str, Any]
MODEL_FILES = ("config.json", "*.safetensors", "tokenizer.json")  # that decide what a model is
T = TypeVar("T")


def source(cfg: Config, world: World) -> Source:
    """Opens the data that `cfg.data` names and records its fingerprint.

    Raises:
        ValueError: it cannot be opened; names the rank where rank 0 could.
    """
    try:
        opened = distributed.after_first(world, lambda: call(cfg["data"]))
    except ValueError as error:
        if world.rank == 0:
            raise
        raise ValueError(f"rank {world.rank} ({socket.gethostname()}): {error}, though rank 0 can open it") from error
    if world.rank == 0:
        output.add_fingerprints(cfg["output_dir"], "data", fingerprint(opened.files), cfg["resume"])
    return opened


def tell(opened: Any, world: World) -> None:
    """Says, each time that data is opened, what was left out of it and what is odd in it."""
    if world.rank == 0:
        for note in getattr(opened, "notes", []):  # rows and texts that are not read from files have none
            console.say(note)


def need(part: Callable[..., T] | None, opened: Source, cfg: Config, what: str, instead: str) -> Callable[..., T]:
    """A part of the data that a stage cannot do without.

    Raises:
        ValueError: the data has no such part.
    """
    if part is None:
        raise ValueError(f"{opened.name} has no {what}, which stage={cfg['stage']['name']} needs: use {instead}")
    return part


def body(cfg: Config, opened: Source, world: World, *, masked_lm: bool) -> Body:
    """Loads or builds the model of `cfg.model`.

    Raises:
        ValueError: there is none, or it has fewer positions than the data wants.
    """
    path = cfg["model"].get("path")
    files = sorted(str(each) for kind in MODEL_FILES for each in Path(path).expanduser().glob(kind)) if path else []
    if files and "save_every" in cfg and world.rank == 0:  # what a run has begun to train it must find again
        output.add_fingerprints(cfg["output_dir"], "model", fingerprint(files), cfg["resume"])
    made: Body = call(cfg["model"], masked_lm=masked_lm, seed=cfg["seed"], vocabulary=partial(vocabulary, cfg, opened))
    least = made.tokenizer.num_special_tokens_to_add() + 1
    for name, one in ((part.name, part.source) for part in opened.mix.parts) if opened.mix else (("", opened),):
        place = f"data.sources.{name}." if name else "data."
        for key in ("passage_max_len",) if masked_lm else ("query_max_len", "passage_max_len"):
            value = getattr(one, key)
            if value > made.max_positions:
                raise ValueError(f"{place}{key}={value} exceeds the {made.max_positions} positions of the model")
            if value < least:
                raise ValueError(f"{place}{key}={value} leaves no room beside the special tokens: {least} is the least")
    if made.adapters and world.rank > 0:  # the frozen weights as they are now are kept for `model/`, which rank 0 writes
        made = made._replace(adapters=made.adapters._replace(frozen={}))
    return made


def vocabulary(cfg: Config, opened: Source, vocab_size: int, max_len: int) -> Any:
    """Trains a WordPiece vocabulary on the data's training texts, or reads the one that this run began with."""
    kept = Path(cfg["output_dir"]) / "tokenizer"
    if kept.is_dir():  # the data may have changed since; the weights know the words of then
        return load_tokenizer(str(kept))
    if opened.texts is None:
        raise ValueError(f"{opened.name} has no texts to train a vocabulary on: set model.tokenizer")
    trained = tokens.train_wordpiece(InBlocks(opened.texts()), vocab_size, max_len)
    beside = kept.with_name(f".tokenizer.{os.getpid()}")
    trained.save_pretrained(beside)
    try:
        beside.rename(kept)
    except OSError:  # another rank was first, with the same words
        shutil.rmtree(beside)
    return trained


class InBlocks:
    """All texts one by one, as often as asked for; read from disk a thousand at a time."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self.texts), 1000):
            yield from self.texts.take(range(start, min(start + 1000, len(self.texts))))


def all_of(*makers: Callable[[], Any]) -> list[Any]:
    """Calls each, and where several fail says so in one line: who has no network should learn of all at once.

    Raises:
        ValueError: the messages of those that failed.
    """
    made, faults = [], []
    for make in makers:
        try:
            made.append(make())
        except ValueError as error:
            faults.append(error)
    if faults:
        raise ValueError(" | ".join(dict.fromkeys(map(str, faults)))) from faults[0]
    return made


def precision(cfg: Config, world: World) -> str:
    """fp32 | bf16 | fp16, with `auto` decided by the device."""
    if cfg["precision"] != "auto":
        return str(cfg["precision"])
    zero_stage = cfg.get("engine", {}).get("zero_optimization", {}).get("stage", 1)
    capable = world.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if capable and zero_stage > 0 else "fp32"


def dtype(cfg: Config, world: World) -> torch.dtype:
    """Of the forward pass."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision(cfg, world)]


def engine(cfg: Config, module: nn.Module, world: World) -> "tuple[Engine, Callable[[int, int], float]]":
    """Puts a module under its optimizer and DeepSpeed; returns the engine and the learning-rate schedule."""
    optimizer, schedule = call(cfg["optim"], module.named_parameters())
    module.train()
    return call(cfg["engine"], module, optimizer, precision=precision(cfg, world), world=world), schedule


def resumed(cfg: Config, running: "Engine", probe: Callable[[], Tensor]) -> int:
    """Takes over the newest checkpoint that is whole, if there is one; returns the first step to do.

    Raises:
        ValueError: there are checkpoints and none is whole, or they are of another model or optimizer.
    """
    world, checkpoints = running.world, Path(cfg["output_dir"]) / "checkpoints"
    step = 0
    if world.rank == 0:
        step = checkpoint.newest_whole(checkpoints, console.say)
        checkpoint.point_best(checkpoints, step)
    step = distributed.from_first(step, world)
    if step:
        running.load(checkpoint.load(checkpoints, step, world.rank, world.size), probe)
    return step + 1


def train(
    cfg: Config,
    running: "Engine",
    batch_at: Callable[[int], Any],
    update: "Callable[[int, Any], tuple[LossOutput, Counts]]",
    steps: range,
    schedule: Callable[[int, int], float],
    log: Callable[[int, dict[str, float]], None],
    world: World,
    describe: Callable[[Any, list[int]], list[dict[str, Any]]] | None = None,
    scoring: "Scoring | None" = None,
) -> dict[str, float]:
    """`fit` with the keys that every training stage has; returns the last figures logged, and `steps` done."""
    from bgetrain.engine.course import Course
    from bgetrain.engine.guard import Guard
    from bgetrain.engine.loop import fit
    from bgetrain.engine.saver import Saver

    output_dir = Path(cfg["output_dir"])
    checkpoints = output_dir / "checkpoints"
    if world.rank == 0:
        checkpoints.mkdir(exist_ok=True)
    progress = checkpoint.progress(checkpoints, steps.start - 1)
    saver = Saver(
        checkpoints,
        world,
        keep=cfg["keep"],
        overlap=cfg["save_async"],
        facts=output.facts(output_dir) if world.rank == 0 else {},
        warn=console.say,
        first_step=steps.start,
    )
    most, known = rules.updates_left_out(cfg["on_nonfinite"]), progress[0]["guard"] if progress else {}
    course = Course(
        running,
        saver=saver,
        guard=Guard(most, output_dir / "nonfinite", describe, world, console.say, known),
        scoring=scoring,
        log=log,
        log_every=cfg["log_every"],
        save_every=cfg["save_every"],
        total_steps=steps.stop - 1,
        world=world,
        progress=progress,
    )
    return fit(
        batch_at,
        update,
        first_step=steps.start,
        schedule=schedule,
        num_workers=cfg["num_workers"],
        course=course,
        world=world,
    )


def on_device(tensor: Tensor | None, world: World) -> Tensor | None:
    return None if tensor is None else tensor.to(world.device, non_blocking=True)


def announce(cfg: Config, made: Body, running: "Engine", sizes: tuple[int, int], facts: Mapping[str, str], world: World) -> None:
    """States before the first step what will happen; `sizes` are those of the smallest and the largest global batch."""
    if world.rank:
        return
    size, trained = (
        sum(getattr(each, "ds_numel", each.numel()) for each in chosen)
        for chosen in (running.core.module.parameters(), running.trained().values())
    )
    shares = [count for size in sizes for count in distributed.shares(size, world)]
    between = "or" if sizes[0] == sizes[1] else "to"
    whole, split = (f"{min(x):,}" if min(x) == max(x) else f"{min(x):,} {between} {max(x):,}" for x in (sizes, shares))
    what = f"{trained / 1e6:.1f} of {size / 1e6:.1f} M parameters trained"
    rows = {
        "model": f"{made.backbone.config.model_type}, {what}, pooling {made.pooling}",
        "ranks": f"{world.size} ({world.device.type})",
        "global batch": f"{whole}, {split} on each rank",
        **facts,
        "precision": f"{precision(cfg, world)}, DeepSpeed ZeRO-{running.zero_stage}",
        "output": str(cfg["output_dir"]),
    }
    console.show(f"stage={cfg['stage']['name']}", rows)
