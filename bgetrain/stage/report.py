"""stage=report: the pages of runs and recipes, written anew or while they are still going."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bgetrain import card, steps
from bgetrain.report import ladder, read
from bgetrain.report import run as one
from bgetrain.report.safely import safely

DEEPEST = 3  # folders within folders that are looked into


def run(cfg: Mapping[str, Any]) -> None:
    """Writes `report.html`, and cards of models, into the folders of the runs and recipes below `cfg.output_dir`.

    Args:
        cfg: the resolved config, as `conf/stage/report.yaml` has it.

    Raises:
        ValueError: there is no such folder, no run in it, or no page can be written.
    """
    folder = Path(os.path.expanduser(cfg["output_dir"]))
    if not folder.is_dir():
        raise ValueError(f"output_dir={folder}: there is no such folder: nothing has run there")
    written = list(pages(folder, 0))
    if not written:
        raise ValueError(f"output_dir={folder} holds no run or recipe whose page can be written")
    for page in written:
        print(page)


def pages(folder: Path, depth: int) -> Iterator[Path]:
    """Writes the pages and cards of a folder: of a run, of a recipe after those of its steps, or of what its folders hold.

    A page that cannot be written is a warning; hidden folders, and those of other programs that have a config.yaml too, are
    passed over.
    """
    recipe = steps.noted(folder)
    page = folder / "report.html"
    if recipe is None and is_run(folder):
        safely("model/README.md", card.write, folder)  # the process may have been killed before it wrote one
        if safely("report.html", one.write, folder) and page.is_file():  # stage=check writes its own, at its end
            yield page
    elif depth < DEEPEST:
        for each in [Path(step.output_dir) for step in recipe[1]] if recipe else below(folder):
            if os.path.isdir(each):
                yield from pages(each, depth + 1)
        if recipe and safely("report.html", ladder.write, folder):
            yield page


def is_run(folder: Path) -> bool:
    """Whether a folder is of a run: its config names a stage. A run's whose config is damaged is a warning."""
    if not os.path.isfile(folder / "config.yaml"):
        return False
    try:
        read.run(folder)
    except ValueError as error:
        if os.path.isfile(folder / "provenance.json"):  # else it is another program's
            print(f"WARNING: {error}", file=sys.stderr, flush=True)
        return False
    return True


def below(folder: Path) -> list[Path]:
    """The folders in a folder, in order, without hidden ones; none where it may not be read, of which a warning tells."""
    try:
        return sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except OSError as error:
        print(f"WARNING: {folder} was passed over ({error.strerror})", file=sys.stderr, flush=True)
        return []
