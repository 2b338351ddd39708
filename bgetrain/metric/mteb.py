"""The `mteb` package: the only file that imports it, which takes seconds."""

import contextlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from bgetrain import quiet as without


def package() -> Any:
    """The `mteb` package.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import mteb
    except ImportError as error:
        raise ValueError("data=mteb needs the package mteb, which is not installed: pip install 'bgetrain[mteb]'") from error
    return mteb


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the package's advice to people who call it from Python, and bars of its own."""
    import datasets

    barred = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with without.quiet("mteb"):
            yield
    finally:
        if barred:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Within, what `datasets` makes of a folder is kept by the folder's files as they are.

    It would else take what it has made of another folder of this name, or of this one as it was.
    """
    import datasets

    stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    stamps = [(path, each.st_size, each.st_mtime_ns) for path, each in stats]
    name = blake2b(repr(stamps).encode(), digest_size=8).hexdigest()
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = Path(before, "bgetrain-mteb", name)
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def task_names() -> list[str]:
    """The names of all tasks."""
    from mteb.get_tasks import TASK_LIST

    return [task.metadata.name for task in TASK_LIST]
