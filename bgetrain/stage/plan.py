"""stage=plan: memory, time and cost of a stage or recipe on some GPUs, on the meta device; nothing is started or written."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bgetrain.forecast import passes, steps
from bgetrain.forecast.passes import Encoder
from bgetrain.stage import foreseen, shapes, told
from bgetrain.types import NonNegativeInt, PositiveFloat, PositiveInt, Ratio

GB = 10**9
TRAINING = told.TRAINING
ENCODING = ("mine", "evaluate", "filter")


def asked(
    *,
    stage: str | None,
    gpu: str,
    gpus: PositiveInt | None,
    gpus_per_machine: PositiveInt | None,
    network: PositiveFloat,
    memory_share: Ratio,
    mfu: Ratio,
    rows: PositiveInt | None,
    rows_of: Mapping[str, PositiveInt],
    queries: NonNegativeInt,
    query_tokens: PositiveInt | None,
    passage_tokens: PositiveInt | None,
    padding: bool,
    search: bool,
    price: PositiveFloat | None,
    json: str | None,
    shape: Mapping[str, Any],
    shapes: Mapping[str, Any],
    devices: Mapping[str, Any],
) -> dict[str, Any]:
    """The keys of `plan`, which `conf/stage/plan.yaml` explains."""
    return dict(locals())


def run(plan: Mapping[str, Any], planned: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Plans steps; prints a table or JSON.

    Args:
        plan: keys of `asked`.
        planned: steps in order: the name of each, and its composed config.

    Returns:
        The figures, which `plan.json` gets.

    Raises:
        ValueError: a model or a precision that cannot be had.
    """
    earlier: dict[str, Encoder] = {}
    found = []
    for name, cfg in planned:
        rows = plan["rows_of"].get(name, plan["rows"])
        try:
            sized = {**plan, "rows": rows, **shapes.size(cfg, plan)}
            figures, encoder = figures_of(cfg, sized, earlier)
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if len(planned) > 1 else str(error)) from error
        found.append({"step": name, "stage": cfg["stage"]["name"], **figures})
        if encoder is not None:
            earlier[f"{cfg['output_dir']}/model"] = encoder
    result = {"assumptions": assumptions(plan), "steps": found, "total": total(plan, found)}
    if plan["json"] == "-":
        json.dump(result, sys.stdout, indent=1)
        print()
        return result
    if plan["json"]:
        Path(plan["json"]).expanduser().write_text(json.dumps(result, indent=1), "utf8")
    told.show_all(plan, result)
    return result


def assumptions(plan: Mapping[str, Any]) -> dict[str, Any]:
    """All that is not computed, by name."""
    device = plan["devices"][plan["gpu"]]
    keys = ("gpu", "gpus", "gpus_per_machine", "network", "memory_share", "mfu", "price", "padding")
    return {**{key: plan[key] for key in keys}, "device": device}


def figures_of(cfg: Mapping[str, Any], plan: Mapping[str, Any], earlier: Mapping[str, Encoder]) -> tuple[dict[str, Any], Any]:
    """Figures of one step, and the shape of the model that it leaves."""
    name = cfg["stage"]["name"]
    if name not in (*TRAINING, *ENCODING):
        encoder = shapes.encoder_of(cfg, plan, earlier) if name == "tokenizer" else None
        return {"note": "no training and no embedding: nothing to plan"}, encoder
    encoder = shapes.encoder_of(cfg, plan, earlier)
    if name in TRAINING:
        return training(cfg, plan, encoder), encoder._replace(lora=None)
    return encoding(cfg, plan, encoder), None


def training(cfg: Mapping[str, Any], plan: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Figures of a training stage."""
    scene = foreseen.Training(cfg, plan, encoder)
    own = scene.own()
    better = scene.better(own) if plan["search"] else None
    size = passes.counts(scene.module(own.choice.checkpointing))
    batch = sum(length * count for length, count in scene.texts.items()) / scene.queries * cfg["global_batch"]
    num_steps = cfg["total_steps"]
    if num_steps is None and plan["rows"]:
        num_steps = -(-int(plan["rows"] * (cfg["epochs"] or 1)) // cfg["global_batch"])
    return {
        "parameters": size.trained + size.frozen,
        "trained": size.trained,
        "ranks": plan["gpus"],
        "link_gb_per_second": shapes.link(plan, scene.device),
        "precision": scene.precision,
        "texts_per_rank": sum(scene.texts.values()),
        "tokens_per_step": round(batch),
        **described(own, scene, num_steps, plan),
        "better": described(better, scene, num_steps, plan) if better else None,
        "searched": bool(plan["search"]),
    }


def described(
    outcome: foreseen.Outcome, scene: foreseen.Training, num_steps: int | None, plan: Mapping[str, Any]
) -> dict[str, Any]:
    """An outcome in figures."""
    at, peak = steps.peak(outcome.moments)
    hours = None if num_steps is None else num_steps * outcome.time / 3600
    return {
        "choice": outcome.choice.keys(),
        "mode": outcome.choice.mode,
        "chunks": steps.work(scene.texts, outcome.choice.chunk_tokens).passes,
        "moments": {name: dict(kinds) for name, kinds in outcome.moments.items()},
        "peak_bytes": peak,
        "peak_at": at,
        "allowed_bytes": scene.allowed,
        "fits": peak <= scene.allowed,
        "flops_per_step": round(outcome.flops * scene.whole / scene.queries),
        "flops_per_rank": outcome.flops,
        "collectives": [each._asdict() for each in outcome.collectives],
        "sent_bytes": dict(outcome.sent._asdict()),
        "seconds": dict(outcome.seconds),
        "seconds_per_step": outcome.time,
        "steps": num_steps,
        **spent(plan, hours),
    }


def encoding(cfg: Mapping[str, Any], plan: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Figures of a stage that embeds texts."""
    moments, query_flops, passage_flops = shapes.encoding(cfg, plan, encoder)
    device = plan["devices"][plan["gpu"]]
    at, peak = steps.peak(moments)
    allowed = plan["memory_share"] * GB * device["memory_gb"]
    figures: dict[str, Any] = {
        "ranks": plan["gpus"],
        "precision": shapes.precision(cfg, device, 1),
        "moments": {name: dict(kinds) for name, kinds in moments.items()},
        "peak_bytes": peak,
        "peak_at": at,
        "allowed_bytes": allowed,
        "fits": peak <= allowed,
        "flops_per_query": query_flops,
        "flops_per_passage": passage_flops,
        **spent(plan, None),
    }
    rows, width = plan["rows"], encoder.config.hidden_size
    if rows:
        queries = rows if cfg["stage"]["name"] == "filter" else plan["queries"]
        searched = 0 if cfg["stage"]["name"] == "filter" else 2 * queries * rows * width
        speed = plan["mfu"] * 1e12 * plan["gpus"]
        own = rows * passage_flops + queries * query_flops
        seconds = own / (speed * device[figures["precision"]]) + searched / (speed * device["fp32"])
        hours = seconds / 3600
        figures |= {"rows": rows, "queries": queries, "flops": own, "search_flops": searched, **spent(plan, hours)}
        figures |= {"embedding_bytes": 4 * rows * width, "embedding_bytes_per_rank": 4 * rows * width // plan["gpus"]}
    return figures


def spent(plan: Mapping[str, Any], hours: float | None) -> dict[str, float | None]:
    """Hours, those of all GPUs of the step, and what these cost."""
    gpu_hours = None if hours is None else hours * plan["gpus"]
    price = plan["price"]
    return {"hours": hours, "gpu_hours": gpu_hours, "cost": None if gpu_hours is None or price is None else gpu_hours * price}


def total(plan: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over the steps whose length is known, and the names of the others."""
    known = [each for each in found if each.get("hours") is not None]
    unknown = [each["step"] for each in found if each.get("hours", 0.0) is None]
    sums = {key: sum(each[key] for each in known) if known else None for key in ("hours", "gpu_hours")}
    cost = sum(each["cost"] for each in known) if known and plan["price"] is not None else None
    return {**sums, "cost": cost, "unknown": unknown}
