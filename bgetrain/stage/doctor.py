"""stage=doctor: what every training stage checks before its first step, and one step, without a run."""

import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bgetrain import distributed, output
from bgetrain.data.tokenize import chunk, join, tokenize
from bgetrain.engine import diagnosis, trial
from bgetrain.engine.chunked import chunk_seeds, single_step
from bgetrain.engine.deepspeed import Engine
from bgetrain.engine.findings import LEVELS, Finding
from bgetrain.logger import console
from bgetrain.model.body import Body
from bgetrain.sources import Source
from bgetrain.stage import build, embed, preflight, supply
from bgetrain.target import call
from bgetrain.types import Contrast, LossOutput, Ragged, World

PAIRS = 4  # of each rank in the step that is tried
STEPS = range(1, 10**6)  # of the run to come, enough for all checkpoints that are kept
COLUMNS = ("check", "state", "what was found")


class Loaded(NamedTuple):
    """What a run would train.

    Attributes:
        source: the data.
        body: the model.
        text: 2 * PAIRS texts of this rank, queries first.
    """

    source: Source
    body: Body
    text: Ragged


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Checks all that can be checked, shows a table and writes `report.json`.

    Args:
        cfg: the resolved config, as `conf/stage/doctor.yaml` has it.
        world: all ranks.
        log: not used: there is no step.

    Returns:
        Figures for `result.json`.

    Raises:
        ValueError: what failed, in one line; the table and the report are there by then.
    """
    began = time.perf_counter()
    found = preflight.environment(cfg, world)
    # no rank may leave alone: the others would wait
    made = distributed.after_first(world, partial(loaded, cfg, world))
    found = preflight.together([*found, opened(made)], world)
    if sound(found):
        assert isinstance(made, Loaded)
        found += trained(cfg, made, world)
    report = {
        "ranks": world.size,
        "device": world.device.type,
        "versions": preflight.versions(),
        "seconds": time.perf_counter() - began,
        "checks": [each._asdict() for each in found],
    }
    counts = {level: sum(each.level == level for each in found) for level in LEVELS}
    if world.rank == 0:
        output.write(Path(cfg["output_dir"]) / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
        ranks = f"{world.size} rank{'s' * (world.size > 1)} ({world.device.type})"
        console.table(f"stage=doctor, {ranks}", COLUMNS, [each for each in found])
        print(f"doctor done: {len(found)} checks, {counts['warning']} warnings, {counts['error']} errors", flush=True)
    preflight.refuse(found)
    return {"checks": len(found), "warnings": counts["warning"], "seconds": report["seconds"]}


def sound(found: list[Finding]) -> bool:
    """Whether nothing has failed so far."""
    return all(each.level != "error" for each in found)


def loaded(cfg: build.Config, world: World) -> Loaded | str:
    """Opens data and model as training would; in words why it cannot."""
    try:
        source: Source = call(cfg["data"])
        queries, passages = texts(source, world)
        body = build.body(cfg, source, world, masked_lm=False)
    except ValueError as error:
        return " ".join(str(error).split())
    limits = (queries, source.query_max_len), (passages, source.passage_max_len)
    return Loaded(source, body, join(*(tokenize(body.tokenizer, each, limit) for each, limit in limits)))


def texts(source: Source, world: World) -> tuple[list[str], list[str]]:
    """As many queries and their passages as are tried on this rank; of texts without queries each is both."""
    one = supply.mix_of(source).parts[0].source

    def places(count: int) -> list[int]:
        return [number % count for number in range(world.rank * PAIRS, (world.rank + 1) * PAIRS)]

    if one.rows is not None:
        rows = one.rows()
        taken = rows.take(places(len(rows)))
        return [row.query for row in taken], [row.positives[0] for row in taken]
    if one.texts is None:
        raise ValueError(f"{source.name} has neither rows nor texts to train on: use another data=")
    every = one.texts()
    found = every.take(places(len(every)))
    return found, found


def opened(made: Loaded | str) -> Finding:
    """Says whether data and model could be loaded."""
    if isinstance(made, str):
        return Finding("model and data", "error", made)
    size = made.body.backbone.num_parameters() / 1e6
    kind = made.body.backbone.config.model_type
    return Finding("model and data", "ok", f"{kind} of {size:.1f} M parameters, {made.source.name}")


def trained(cfg: build.Config, made: Loaded, world: World) -> list[Finding]:
    """The findings of all ranks about the model under DeepSpeed, and about one step of it."""
    module = embed.bi_encoder(made.body, world, learnable_temperature=cfg["loss"]["learnable_temperature"])
    running, _ = build.engine(cfg, module, world)
    pad_id = None if module.packed else made.body.tokenizer.pad_token_id
    longest = max(made.source.query_max_len, made.source.passage_max_len)
    shape = (longest, cfg["chunk_tokens"], pad_id, world)
    forward = partial(preflight.embedded, running, widened(made.text, longest, cfg["chunk_tokens"]), *shape)
    start = preflight.Start(running, made.body.tokenizer, made.source.files, STEPS, made.text, forward)
    found = preflight.together(preflight.training(cfg, start, world), world)
    return found + preflight.together([step(cfg, running, made.text, pad_id, world)], world) if sound(found) else found


def widened(text: Ragged, longest: int, chunk_tokens: int) -> Ragged:
    """The same texts often enough that a whole chunk of the longest rows can be made of them."""
    times = -(-max(1, chunk_tokens // longest) // len(text.lengths))
    return Ragged(text.ids.repeat(times), text.lengths.repeat(times))


def step(cfg: build.Config, running: Engine, text: Ragged, pad_id: int | None, world: World) -> Finding:
    """One step of training on all ranks: loss and gradient are finite, and all ranks have the same weights after it."""

    def loss(embeddings: Tensor, shift: Tensor | None) -> LossOutput:
        contrast = Contrast(embeddings[:PAIRS], embeddings[PAIRS:], shift=shift)
        return call(cfg["loss"], contrast, counts=[PAIRS] * world.size, world=world)

    order = torch.arange(len(text.lengths))
    whole = tuple(build.on_device(each, world) for each in chunk(text, order, pad_id))
    taken = single_step(running, [whole], order.to(world.device), chunk_seeds(cfg["seed"], 1, world.rank, 1), loss)
    value, norm = float(distributed.sum_over_ranks(taken.loss, world)), running.step()
    if not (math.isfinite(value) and math.isfinite(norm)):
        line = f"one step gives loss {value} and gradient norm {norm}: use precision=fp32 or other weights"
        return Finding("one step", "error", line)
    own = trial.checksums(running)
    same = diagnosis.same_weights(own, distributed.from_first(own, world))
    if same.level == "error":
        return Finding("one step", "error", f"after one step {same.line}")
    how = f"DeepSpeed ZeRO-{running.zero_stage} in {build.precision(cfg, world)}"
    return Finding("one step", "ok", f"{how}: loss {value:.4f}, gradient norm {norm:.4f}")
