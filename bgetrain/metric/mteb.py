"""The `mteb` package: the only file that imports it, which takes seconds."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any


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
    logger = logging.getLogger("mteb")
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if barred:
            datasets.enable_progress_bars()


def task_names() -> list[str]:
    """The names of all tasks."""
    from mteb.get_tasks import TASK_LIST

    return [task.metadata.name for task in TASK_LIST]
