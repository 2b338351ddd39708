"""The output folder: whose it is, what it says of the run, and whether the run is done."""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import yaml

# Keys that change how a run goes, not what comes out: a folder may be resumed under other values of them.
FREE = (
    "num_processes",
    "resume",
    "log_every",
    "save_every",
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
)
BINDING = ("engine.gradient_clipping",)  # though it stands in a node that is free
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
    "pool",
)
FOLDERS = (
    *("checkpoints", "model", "decoder", "adapter", "tokenizer", "tensorboard", "wandb", "nonfinite", "lengths", ".parts"),
    *("counts", "pool", "kept", "dropped"),  # of stage=filter
)
FILES = (
    *("config.yaml", "provenance.json", "metrics.jsonl", "result.json", "train.jsonl", "scores.png", "examples.md"),
    *("report.json", "report.html", "similarity.png"),
)
PACKAGES = ("bgetrain", "torch", "transformers", "deepspeed", "peft", "tokenizers", "datasets", "numpy", "faiss-cpu", "faiss-gpu")


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if state == "new" and (folder / "config.yaml").exists():
            clear(folder)
        (folder / "result.json").unlink(missing_ok=True)  # of a run that goes on under other values: it is not done
        write(folder / "config.yaml", yaml.safe_dump(dict(cfg), sort_keys=False, allow_unicode=True))
        if state == "new" or not (folder / "provenance.json").exists():  # a resumed run's data is held against it
            write(folder / "provenance.json", json.dumps(provenance(), indent=2))
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
        strangers = [name for name in strangers if not name.startswith(".")]
        if strangers and cfg["resume"] != "force":
            raise ValueError(
                f"output_dir={folder} holds files that are not a run's ({', '.join(strangers[:3])}): choose another folder"
            )
        return "new"
    earlier = run_config(saved)
    if cfg["resume"] == "never" or not any(holds_something(folder / name) for name in LEAVES):
        return "new"
    changes = differences(earlier, dict(cfg))
    if changes and cfg["resume"] != "force":
        raise ValueError(
            f"output_dir={folder} belongs to a run with {'; '.join(changes[:4])}{' ...' if len(changes) > 4 else ''}: "
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


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key=old, now new` for every key that decides a result and differs."""
    found = []
    for key in {**earlier, **now}:
        name, old, new = f"{prefix}{key}", earlier.get(key, "(unset)"), now.get(key, "(unset)")
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{name}.")
        elif old != new and not is_free(name):
            found.append(f"{name}={old}, now {new}")
    return found


def is_free(name: str) -> bool:
    """Whether a run may go on under another value of this key."""
    within = any(name == free or name.startswith(f"{free}.") for free in FREE)
    return within and name not in BINDING


def clear(folder: Path) -> None:
    """Removes what a run has written into `folder`, and nothing else; embeddings stay, which are found by what they are of."""
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def provenance() -> dict[str, Any]:
    """Versions and place of this run."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": versions, "git": git_hash()}


def git_hash() -> str | None:
    """The commit that bgetrain itself stands at; None in an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def add_fingerprints(output_dir: str, found: Mapping[str, Any], resume: str) -> None:
    """Adds the fingerprints of the data to the provenance.

    Raises:
        ValueError: they are not those that the run began with, and `resume` is not force.
    """
    path = Path(output_dir) / "provenance.json"
    known = json.loads(path.read_text("utf8"))
    changed = [name for name in {**known.get("data", {}), **found} if known.get("data", found).get(name) != found.get(name)]
    if changed and resume != "force":
        raise ValueError(
            f"{changed[0]} has changed since the run in output_dir={output_dir} began: choose another output_dir, "
            f"or resume=never to start anew, or resume=force to go on with the data as it is"
        )
    write(path, json.dumps({**known, "data": dict(found)}, indent=2))


def facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of the run besides: the config as it is saved, and the fingerprints of the data."""
    provenance = folder / "provenance.json"
    data = json.loads(provenance.read_text("utf8")).get("data", {}) if provenance.exists() else {}
    saved = folder / "config.yaml"
    return {"config": run_config(saved) if saved.exists() else {}, "data": data}


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
