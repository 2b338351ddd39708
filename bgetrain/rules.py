"""Rules that join several keys of a config; what one key may be is said by the annotations."""

import re
from typing import Any

SKIP = re.compile(r"skip\(([1-9]\d*)\)", re.ASCII)


def across(cfg: dict[str, Any]) -> None:
    """Rules that join keys of several groups."""
    if not cfg["output_dir"].strip():
        raise ValueError("output_dir is empty: give the folder that receives the outputs")
    if "\0" in cfg["output_dir"]:
        raise ValueError("output_dir holds a NUL character, which no name of a file can: give another folder")
    if cfg["seed"] >= 2**63:
        raise ValueError(f"seed={cfg['seed']} must be below 2^63, or random generators cannot take it")
    if "total_steps" in cfg and cfg["total_steps"] is None and cfg["epochs"] is None:
        raise ValueError("total_steps and epochs are both null: set one of them")
    zero_stage = cfg.get("engine", {}).get("zero_optimization", {}).get("stage", 1)
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"engine.zero_optimization.stage must be 0, 1, 2 or 3, got {zero_stage!r}")
    if zero_stage == 0 and cfg["precision"] == "bf16":
        raise ValueError(
            "precision=bf16 with engine=zero0 would add up gradients in bf16, which loses most of them; use engine=zero1"
        )
    rank = cfg.get("model", {}).get("lora")
    if rank is not None and cfg["stage"]["name"] not in ("pairs", "finetune"):
        raise ValueError(
            f"model.lora={rank} trains adapters, which stage={cfg['stage']['name']} does not: use stage=pairs or stage=finetune, "
            "or model.lora=null"
        )
    if "on_nonfinite" in cfg:
        updates_left_out(cfg["on_nonfinite"])
    if "guide_model" in cfg:
        contrast(cfg, cfg["loss"])
    if "filter" in cfg:
        filtering(cfg["filter"])
    if "mine" in cfg:
        mining(cfg["mine"])
    if "every" in cfg.get("evaluate", {}):
        evaluating(cfg["evaluate"])


def evaluating(asked: dict[str, Any]) -> None:
    """Rules of evaluation while a stage trains."""
    for key in ("path", "split", "metric", "patience"):
        if asked["every"] is None and asked[key] is not None:
            raise ValueError(f"evaluate.{key}={asked[key]} has no effect without evaluate.every: set it, e.g. to 500 steps")
    if asked["path"] is not None and asked["split"] is None:
        raise ValueError(f"evaluate.path={asked['path']} needs evaluate.split=NAME: qrels/NAME.tsv of that folder is evaluated")
    if asked["every"] is not None and not asked["held_out"] and asked["split"] is None:
        raise ValueError(
            f"evaluate.every={asked['every']} has nothing to evaluate: set evaluate.held_out, or evaluate.split and, where the "
            "training data has no corpus and queries, evaluate.path"
        )


def updates_left_out(on_nonfinite: str) -> int:
    """Updates in a row that may be left out.

    Raises:
        ValueError: it is neither stop nor skip(N).
    """
    found = SKIP.fullmatch(on_nonfinite)
    if on_nonfinite != "stop" and not found:
        raise ValueError(f"on_nonfinite must be stop or skip(N), with N updates in a row at the most, got {on_nonfinite!r}")
    return int(found[1]) if found else 0


def mining(asked: dict[str, Any]) -> None:
    """Rules of stage=mine."""
    if asked["first"] >= asked["last"]:
        raise ValueError(f"mine.first={asked['first']} must be below mine.last={asked['last']}: ranks count from 0, best first")
    least, most = asked["min_score"], asked["max_score"]
    if least is not None and most is not None and least >= most:
        raise ValueError(f"mine.min_score={least} must be below mine.max_score={most}: nothing would be left")


def filtering(asked: dict[str, Any]) -> None:
    """Rules of stage=filter."""
    least, top_k = asked["min_similarity"], asked["top_k"]
    if least is None and top_k is None and asked["sample"] is None:
        raise ValueError(
            "filter.min_similarity and filter.top_k are both null, so nothing would be dropped: set one of them, "
            "or filter.sample to have a look"
        )
    if least is not None and abs(least) > 1:
        raise ValueError(f"filter.min_similarity={least} must be from -1 to 1: it is a cosine")
    if top_k is not None and top_k >= asked["pool"]:
        raise ValueError(f"filter.top_k={top_k} must be below filter.pool={asked['pool']}: else every positive is found")


def contrast(cfg: dict[str, Any], loss: dict[str, Any]) -> None:
    """Rules of contrastive stages, for the loss of the run or of one source."""
    alone = cfg["group_size"] == 1
    if cfg["memory_limit"] is not None and cfg["step_mode"] != "auto":
        raise ValueError(f"memory_limit is read by step_mode=auto alone, and step_mode is {cfg['step_mode']}: leave one out")
    if cfg["batch_tokens"] is not None and not cfg["length_buckets"]:
        raise ValueError(f"batch_tokens={cfg['batch_tokens']} needs length_buckets, e.g. [128,512]: set both or none")
    if cfg["length_buckets"] != sorted(set(cfg["length_buckets"])):
        raise ValueError(f"length_buckets={cfg['length_buckets']} must rise, e.g. [128,512]: they are limits in tokens")
    if cfg["length_buckets"] and cfg["data"].get("batches") == "mixed":
        raise ValueError("length_buckets makes batches of rows of one length, and data.batches=mixed of all: choose one of them")
    if cfg["global_batch"] == 1 and alone:
        raise ValueError("global_batch=1 with group_size=1 leaves a query no negative: raise one of them")
    if loss["teacher"] == "none" and loss["contrastive_weight"] == 0:
        raise ValueError("loss.contrastive_weight=0 with loss.teacher=none leaves nothing to train on: change one of them")
    if loss["learnable_temperature"] and loss["temperature"] < 0.01:
        raise ValueError(f"loss.temperature={loss['temperature']} is below 0.01, the least of a learnable one (CLIP)")
    if loss["mask_margin"] is not None and abs(loss["mask_margin"]) > 2:
        raise ValueError(f"loss.mask_margin={loss['mask_margin']} must be from -2 to 2: similarities are from -1 to 1")
    if loss["negatives"] == "group" and alone:
        raise ValueError("loss.negatives=group with group_size=1 leaves a query no negative: use group_size=2 or more")
    if loss["negatives"] == "group" and loss["directions"] != "forward":
        raise ValueError(
            f"loss.directions={loss['directions']} needs other queries, and loss.negatives=group has none: use rank or world"
        )
    if loss["teacher"] == "group" and alone:
        raise ValueError("loss.teacher=group compares the passages of a group, and group_size=1 has one: use 2 or more")
    if cfg["guide_model"] and loss["mask_margin"] is None:
        raise ValueError(f"guide_model={cfg['guide_model']} judges nothing: set loss.mask_margin, e.g. 0.0, or guide_model=null")
    widths, weights = loss["matryoshka"], loss["matryoshka_weights"]
    if weights and len(weights) != len(widths):
        raise ValueError(f"loss.matryoshka_weights={weights} must give one weight for each of loss.matryoshka={widths}")
    if len(set(widths)) < len(widths):
        raise ValueError(f"loss.matryoshka={widths} names a width twice")
