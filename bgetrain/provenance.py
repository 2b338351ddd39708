"""With what versions a run was made, and where."""

import os
import platform
import re
import subprocess
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("bgetrain", "torch", "transformers", "deepspeed", "peft", "tokenizers", "datasets", "numpy", "faiss-cpu", "faiss-gpu")


def versions() -> dict[str, Any]:
    """Versions and place of this run."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": found,
        "git": git_hash(),
        "hardware": hardware(),
    }


def hardware() -> str:
    """The GPUs and processors of this machine in words, as the kernel lists them."""
    gpus = Counter(
        name for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")) for name in listed(path, "Model")[:1]
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    models = "".join(f" ({name})" for name in listed(Path("/proc/cpuinfo"), "model name")[:1])
    return ", ".join([*(f"{count} x {name}" for name, count in gpus.items()), f"{cores} cores{models}"])


def listed(path: Path, key: str) -> list[str]:
    """The values of `key : value` lines; none where the kernel has no such file."""
    try:
        return re.findall(rf"(?m)^{key}\s*:\s*(.+?)\s*$", path.read_text("utf8", "replace"))
    except OSError:
        return []


def git_hash() -> str | None:
    """The commit that bgetrain itself stands at; None in an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
