"""Train text-embedding models the way BGE was trained, from YAML alone."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__"]  # as in __init__.pyi, which type checkers read


def __getattr__(name: str) -> Any:
    """`from bgetrain import Embedder` imports torch; `import bgetrain` does not."""
    if name == "Embedder":
        return importlib.import_module("bgetrain.embedder").Embedder
    raise AttributeError(f"module 'bgetrain' has no attribute {name!r}")
