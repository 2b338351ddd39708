"""Rules that join several keys of a config; what one key may be is said by the annotations."""

import re
from collections.abc import Mapping
from typing import Any

from bgetrain import mteb_names, trust
from bgetrain.cluster import queue

MTEB = "bgetrain.data.mteb.mteb"
SKIP = re.compile(r"skip\(([1-9]\d*)\)", re.ASCII)

# options of sbatch that job.sbatch stands on, and what decides them
DECIDED = {
    **dict.fromkeys(("--nodes", "-N"), "cluster.nodes"),
    **dict.fromkeys(("--ntasks", "-n", "--ntasks-per-node"), "cluster.tasks_per_node"),
    **dict.fromkeys(("--output", "-o", "--error", "-e", "--open-mode"), "output_dir, where the log is OUT/slurm-ID.out"),
    **dict.fromkeys(("--chdir", "-D"), "the folder where the command is typed"),
    **dict.fromkeys(("--array", "-a"), "a sweep, bgetrain -m"),
    "--signal": "cluster.save_before_seconds",
    **dict.fromkeys(("--requeue", "--no-requeue"), "cluster.max_restarts"),
    **dict.fromkeys(("--time", "-t"), "cluster.time"),
    "--mem": "cluster.memory",
    **dict.fromkeys(("--cpus-per-task", "-c"), "cluster.cpus_per_task"),
    **dict.fromkeys(("--job-name", "-J"), "cluster.job_name"),
    **dict.fromkeys(("--partition", "-p"), "cluster.partition"),
    **dict.fromkeys(("--account", "-A"), "cluster.account"),
    **dict.fromkeys(("--qos", "-q"), "cluster.qos"),
    "--reservation": "cluster.reservation",
    **dict.fromkeys(("--constraint", "-C"), "cluster.constraint"),
    "--gpus-per-node": "cluster.gpus_per_node",
}


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
    if zero_stage == 0 and cfg["precision"] in ("bf16", "fp16"):
        raise ValueError(
            f"precision={cfg['precision']} with engine=zero0 would add up gradients in {cfg['precision']}, which loses most of "
            "them; use engine=zero1"
        )
    rank = cfg.get("model", {}).get("lora")
    if rank is not None and cfg["stage"]["name"] not in ("pairs", "finetune"):
        raise ValueError(
            f"model.lora={rank} trains adapters, which stage={cfg['stage']['name']} does not: use stage=pairs or stage=finetune, "
            "or model.lora=null"
        )
    if "sbatch_lines" in cfg["cluster"]:
        scheduling(cfg, cfg["cluster"])
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
    if cfg.get("data", {}).get("_target_") == MTEB:
        benchmark(cfg["data"], cfg.get("evaluate", {}))


def scheduling(cfg: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Rules of cluster=slurm: what its script is to hold must be what SLURM and a shell understand."""
    if cfg["num_processes"] not in (None, 1):
        raise ValueError(
            f"num_processes={cfg['num_processes']} is for one machine; with cluster=slurm ranks are cluster.nodes times "
            "cluster.tasks_per_node (null: one for each GPU): set those"
        )
    for secret in trust.secrets(cfg):
        raise ValueError(
            f"{secret} holds a secret, which would stand in job.sbatch for others to read: leave it out, and export it where you "
            "submit (sbatch takes the environment along), or cluster.setup='[source FILE]' with a file that only you can read"
        )
    for key, value in [("output_dir", cfg["output_dir"]), *((f"cluster.{key}", value) for key, value in asked.items())]:
        listed = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
        if any(character in str(each) for each in listed for character in "\n\r\0"):
            raise ValueError(f"{key} holds a line break, which a line of job.sbatch cannot: give one line for each item")
    limit = asked["time"]
    seconds = queue.seconds_of(limit) if limit is not None else None
    if limit is not None and seconds is None:
        raise ValueError(
            f"cluster.time={limit} is no time: give minutes, or D-HH:MM:SS or HH:MM:SS in quotes, such as '1-12:00:00'"
        )
    if seconds is not None and seconds <= asked["save_before_seconds"]:
        raise ValueError(
            f"cluster.time={limit} is over when ranks would be told to save, cluster.save_before_seconds="
            f"{asked['save_before_seconds']} before: raise the one or lower the other"
        )
    if asked["memory"] is not None and not re.fullmatch(r"\d+[KMGT]?", asked["memory"], re.ASCII | re.IGNORECASE):
        raise ValueError(f"cluster.memory={asked['memory']} is no size: give a number with K, M, G or T, such as 200G")
    for name in asked["environment"]:
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name), re.ASCII):
            raise ValueError(f"cluster.environment has {name!r}, which is no name of a variable: letters, digits and _ alone")
    for line in asked["sbatch_lines"]:
        flag = re.split(r"[= ]", line)[0]
        if not re.fullmatch(r"--?\w[\w-]*", flag):
            raise ValueError(
                f"cluster.sbatch_lines has {line!r}: give options of sbatch such as --mail-type=FAIL, without #SBATCH"
            )
        flag = flag if flag.startswith("--") else flag[:2]
        if flag in DECIDED:
            raise ValueError(f"cluster.sbatch_lines has {line!r}, which is decided by {DECIDED[flag]}")


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


def benchmark(data: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Rules of data=mteb."""
    if not data["tasks"] and not data["types"]:
        raise ValueError("data.tasks=[] with data.types=[] names no task: give names, e.g. data.tasks=[STS12], or types")
    if asked.get("bm25"):
        raise ValueError("evaluate.bm25=true has no effect on tasks of mteb, which BM25 does not embed: leave it out")
    if asked.get("compare"):
        raise ValueError("evaluate.compare has no effect on tasks of mteb, whose figures are not of single queries: leave it out")
    mteb_names.check(data["tasks"])


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
