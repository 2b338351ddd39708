"""stage=report: the pages of runs and recipes, written anew or while they are still going."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bgetrain import steps
from bgetrain.report import ladder
from bgetrain.report import run as one

DEEPEST = 3  # folders within folders that are looked into


def run(cfg: Mapping[str, Any]) -> None:
    """Writes `report.html` into the folders of the runs and recipes below `cfg.output_dir`.

    Args:
        cfg: the resolved config, as `conf/stage/report.yaml` has it.

    Raises:
        ValueError: there is no such folder, no run in it, or a page cannot be written.
    """
    folder = Path(os.path.expanduser(cfg["output_dir"]))
    if not folder.is_dir():
        raise ValueError(f"output_dir={folder}: there is no such folder: nothing has run there")
    written = list(pages(folder, 0))
    if not written:
        raise ValueError(f"output_dir={folder} holds no run or recipe")
    for page in written:
        print(page)


def pages(folder: Path, depth: int) -> Iterator[Path]:
    """Writes the pages of a folder: of a run, of a recipe after those of its steps, or of what its folders hold."""
    recipe = steps.noted(folder)
    page = folder / "report.html"
    try:
        if recipe is None and (folder / "config.yaml").is_file():
            one.write(folder)
            if page.is_file():  # stage=check writes its own, at its end
                yield page
        elif depth < DEEPEST:
            below = [Path(step.output_dir) for step in recipe[1]] if recipe else sorted(folder.iterdir())
            for each in below:
                if each.is_dir():
                    yield from pages(each, depth + 1)
            if recipe:
                ladder.write(folder)
                yield page
    except OSError as error:
        raise ValueError(f"{page} cannot be written: {error.strerror}") from error
