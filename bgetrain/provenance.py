"""With what versions a run was made, and where."""

import platform
import subprocess
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
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": found, "git": git_hash()}


def git_hash() -> str | None:
    """The commit that bgetrain itself stands at; None in an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
