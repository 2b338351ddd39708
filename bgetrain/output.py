"""The output folder: whose it is, what it says of the run, and whether the run is done."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from bgetrain import provenance, trust
from bgetrain.cluster.local import say

# Keys that change how a run goes, not what comes out: a folder may be resumed under other values of them.
FREE = (
    "num_processes",
    "resume",
    "log_every",
    "save_every",
    "preflight",
    "output_dir",
    "cluster",
    "logger",
    "chunk_tokens",
    "step_mode",
    "memory_limit",
    "num_workers",
    "embeddings_cache",
    "engine",
    "model.gradient_checkpointing",
    "data.num_workers",
    "data.cache",
    "check.num_workers",
    "keep",
    "save_async",
    "on_nonfinite",
    "model.trust_remote_code",
    "evaluate",  # while training: how often, for what; in stage=evaluate it decides the result, and is bound below
)
BINDING = ("engine.gradient_clipping", "evaluate.held_out")  # though they stand in nodes that are free
UNTOLD = ("resume", "output_dir")  # of the free keys: a changed value is no news
# what a run leaves; a folder with none of these has nothing to lose
LEAVES = (
    "checkpoints",
    "model",
    "decoder",
    "adapter",
    "metrics.jsonl",
    "train.jsonl",
    "report.json",
    "result.json",
    "counts",
    *("pool", "mteb"),
)
FOLDERS = (
    *(
        "checkpoints",
        "model",
        "decoder",
        "adapter",
        "tokenizer",
        "tensorboard",
        "wandb",
        "nonfinite",
        "stacks",
        "lengths",
        ".parts",
    ),
    *("counts", "pool", "kept", "dropped", "mteb"),  # of stage=filter, and of evaluate
)
FILES = (
    *("config.yaml", "provenance.json", "metrics.jsonl", "result.json", "train.jsonl", "scores.png", "examples.md"),
    *("report.json", "report.html", "similarity.png"),
)


OURS = ("job.sbatch", "job.json", "jobs.txt", "slurm-*.out", "failures-*.txt")  # of jobs that are to make a run here; they stay
UNSET = "(unset)"
SHOWN = 8  # changes told in the line of a run that goes on
WIDTH = 80  # letters of a value in a message


class Difference(NamedTuple):
    """A key with its value in the run that a folder holds, and now."""

    key: str
    old: Any
    new: Any


def write(path: Path, text: str) -> None:
    """Writes a file, and the folders above it, so that it is either whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, "utf8")
    beside.replace(path)


def claim(cfg: Mapping[str, Any]) -> Literal["new", "resume", "done"]:
    """Makes `output_dir` this run's own and saves the resolved config in it; rank 0 alone calls it.

    Returns:
        new: nothing there; resume: an unfinished run of this config; done: a finished one.

    Raises:
        ValueError: the folder cannot be written, or holds something else, or a run of another config.
    """
    folder = Path(cfg["output_dir"])
    state = standing(cfg)
    if state == "done":
        return state
    if state == "resume":
        tell_changes(run_config(folder / "config.yaml"), cfg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if state == "new" and (folder / "config.yaml").exists():
            clear(folder)
        (folder / "result.json").unlink(missing_ok=True)  # of a run that goes on under other values: it is not done
        write(folder / "config.yaml", yaml.safe_dump(trust.masked(cfg), sort_keys=False, allow_unicode=True))
        if state == "new" or not (folder / "provenance.json").exists():  # a resumed run's data is held against it
            write(folder / "provenance.json", json.dumps(provenance.versions(), indent=2))
    except OSError as error:
        raise ValueError(f"output_dir={folder}: cannot write here: {error.strerror}") from error
    return state


def standing(cfg: Mapping[str, Any]) -> Literal["new", "resume", "done"]:
    """How far the run of `cfg` is in its folder, without touching it.

    Raises:
        ValueError: the folder cannot be written, holds a run of another config, or files that no run has written.
    """
    folder = Path(cfg["output_dir"])
    check_writable(folder)
    saved = folder / "config.yaml"
    if not saved.exists():
        strangers = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        strangers = [name for name in strangers if not any(fnmatch(name, each) for each in (".*", *OURS))]
        if strangers and cfg["resume"] != "force":
            raise ValueError(
                f"output_dir={folder} holds files that are not a run's ({', '.join(strangers[:3])}): choose another folder"
            )
        return "new"
    earlier = run_config(saved)
    full = any(holds_something(folder / name) for name in LEAVES)
    stage, now = (each.get("stage", {}).get("name") for each in (earlier, cfg))
    if full and cfg["resume"] == "never" and stage != now:  # which some stages say by themselves
        raise ValueError(f"output_dir={folder} holds what stage={stage} has made: choose another output_dir, or delete it")
    if cfg["resume"] == "never" or not full:
        return "new"
    changes = [each for each in differences(effective(earlier), effective(cfg)) if not is_free(each.key, cfg)]
    if changes and cfg["resume"] != "force":
        told = [f"{key}={short(old)}, now {short(new)}" for key, old, new in changes]
        raise ValueError(
            f"output_dir={folder} belongs to a run with {'; '.join(told[:4])}{' ...' if len(changes) > 4 else ''}: "
            f"choose another output_dir, or resume=never to start anew, or resume=force to go on under the new values"
        )
    return "done" if (folder / "result.json").exists() and not changes else "resume"


def run_config(saved: Path) -> dict[str, Any]:
    """The config of an earlier run, which makes the folder ours.

    Raises:
        ValueError: a file of that name that no run has written; the folder is somebody else's.
    """
    try:
        earlier = yaml.safe_load(saved.read_text("utf8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{saved}: cannot be read as YAML; choose another output_dir") from error
    if not isinstance(earlier, dict) or not {"seed", "output_dir", "resume"} <= set(earlier):
        raise ValueError(f"{saved}: is not a run's config; choose another output_dir")
    return earlier


def holds_something(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and path.stat().st_size > 0)


def check_writable(folder: Path) -> None:
    """Refuses a folder that can neither be written nor made.

    Raises:
        ValueError: it, or what stands where it should be, is a file or read-only.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"output_dir={folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"output_dir={folder}: no permission to write in {there}")


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every key that differs between a config as it was saved and one of now, whose secrets do not count."""

    def walk(old: Any, new: Any, name: str) -> Iterator[Difference]:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for key in {**old, **new}:
                yield from walk(old.get(key, UNSET), new.get(key, UNSET), f"{name}.{key}" if name else str(key))
        elif old != new:
            yield Difference(name, old, new)

    return list(walk(trust.masked(earlier), trust.masked(now), ""))


def effective(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose values are those that count: nothing is held out where nothing is evaluated."""
    asked = cfg.get("evaluate")
    if isinstance(asked, Mapping) and asked.get("held_out") and asked.get("every") is None:
        return {**cfg, "evaluate": {**asked, "held_out": 0}}
    return dict(cfg)


def is_free(name: str, cfg: Mapping[str, Any]) -> bool:
    """Whether a run of `cfg` may go on under another value of this key."""
    if name.split(".")[0] == "evaluate" and "save_every" not in cfg:
        return False

    def within(keys: Sequence[str]) -> bool:
        return any(name == key or name.startswith(f"{key}.") for key in keys)

    return within(FREE) and not within(BINDING)


def tell_changes(earlier: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """Says under which new values a run goes on: of free keys, and with resume=force of any."""
    changes = [each for each in differences(earlier, cfg) if each.key.split(".")[0] not in UNTOLD]
    changes.sort(key=lambda each: is_free(each.key, cfg))  # what matters more comes first
    told = [f"{key}={short(new)} (was {short(old)})" for key, old, new in changes]
    forced = "resume=force " if any(not is_free(each.key, cfg) for each in changes) else ""
    if told:
        say(f"{forced}goes on under {', '.join(told[:SHOWN])}{f' and {len(told) - SHOWN} more' if len(told) > SHOWN else ''}")


def short(value: Any) -> str:
    """A value as one would type it, cut where it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 4]} ..."


def clear(folder: Path) -> None:
    """Removes what a run has written into `folder`, and nothing else; embeddings stay, which are found by what they are of."""
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def add_fingerprints(output_dir: str, kind: str, found: Mapping[str, Any], resume: str) -> None:
    """Adds the fingerprints of files to the provenance.

    Args:
        output_dir: of the run.
        kind: data | model.
        found: file -> its fingerprint.
        resume: of the run.

    Raises:
        ValueError: they are not those that the run began with, and `resume` is not force.
    """
    path = Path(output_dir) / "provenance.json"
    known = json.loads(path.read_text("utf8"))
    before = known.get(kind, found)
    changed = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    if changed and resume != "force":
        raise ValueError(
            f"{changed[0]} has changed since the run in output_dir={output_dir} began: choose another output_dir, "
            f"or resume=never to start anew, or resume=force to go on with what is there now"
        )
    write(path, json.dumps({**known, kind: dict(found)}, indent=2))


def facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of the run besides: the config as it is saved, and the fingerprints of data and model."""
    path, saved = folder / "provenance.json", folder / "config.yaml"
    known = json.loads(path.read_text("utf8")) if path.exists() else {}
    config = run_config(saved) if saved.exists() else {}
    return {"config": config, "data": known.get("data", {}), "model": known.get("model", {})}


def finish(output_dir: str, stage: str, figures: Mapping[str, Any]) -> None:
    """Writes `result.json`, which marks the run as done, and when (seconds since 1970)."""
    facts = {"stage": stage, "status": "done", "finished_at": time.time(), **figures}
    write(Path(output_dir) / "result.json", json.dumps(facts, indent=2))


def result(output_dir: str) -> dict[str, Any]:
    """Reads `result.json` of a finished run.

    Raises:
        ValueError: it is not the whole file that a run writes.
    """
    path = Path(output_dir) / "result.json"
    try:
        return dict(json.loads(path.read_text("utf8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read; delete it to do this step again") from error
