"""Arrow files that stand for what was read from other files, one for each state of these."""

import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 3  # of the cached Arrow files; a change makes old ones unused


def cached(read: Any, paths: list[str], origin: dict[str, Any] | None, columns: dict[str, str], features: Any) -> Any:
    """Runs `read` over the sources into an Arrow file, once for each state of the sources, and maps that file.

    Raises:
        ValueError: what `read` raises, or no row at all.
    """
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()
    stamps = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in paths]
    key = json.dumps([FORMAT, read.__name__, stamps, origin, columns], sort_keys=True)
    # a tuple: of a list datasets would make one call for each item
    arguments = {"paths": tuple(paths), "origin": origin, "columns": columns}
    try:
        return Dataset.from_generator(
            read, features=features, gen_kwargs=arguments, fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32]
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None


def beside(table: Any, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that belongs to a table of `cached`: made once, kept in the table's folder, and mapped.

    Args:
        table: what `cached` returned, or a `store.Store`.
        name: of the array, e.g. "names".
        make: computes it.
    """
    folder = table.folder if hasattr(table, "folder") else Path(table.cache_files[0]["filename"]).parent
    path = folder / f"{name}.npy"
    if not path.exists():
        part = path.with_name(f".{name}.{socket.gethostname()}.{os.getpid()}")
        with part.open("wb") as file:
            np.save(file, make())
        part.replace(path)
    return np.load(path, mmap_mode="r")
