"""Which retrieval sets a path stands for: a folder in BEIR layout, a folder of such, a pattern, or a list of these."""

import glob
import os
from pathlib import Path

from bgetrain.data.files import there

LAYOUT = ("corpus.jsonl", "corpus.jsonl.gz", "queries.jsonl", "queries.jsonl.gz", "qrels")


def sets_of(path: str | list[str]) -> dict[str, Path]:
    """Finds the sets that `data.path` names.

    A folder that is no set itself but holds some stands for them; where it is one of several, as CQADupStack is in BEIR,
    its sets are named `FOLDER/SET`, by which they count as one in a mean over sets.

    Args:
        path: a folder, a pattern such as `BEIR/*`, which passes over folders that have nothing of the layout, or a list.

    Returns:
        Name of each set, its folder's, -> the folder, in the order of the list, within a pattern by name. A lone folder is
        named so whatever it holds: who opens it says what it lacks.

    Raises:
        ValueError: a pattern or list without a set in it, or two sets of one name.
    """
    given = [path] if isinstance(path, str) else path
    folders = [folder for each in given for folder in matching(each)]
    if not folders:
        raise ValueError("data.path=[] names no folder: give at least one, e.g. data.path=[BEIR/nq,BEIR/scifact]")
    if len(folders) == 1 and children(folders[0]):
        folders = children(folders[0])
    found: dict[str, Path] = {}
    for folder in folders:
        inner = children(folder)
        for name, each in {f"{named(folder)}/{named(one)}": one for one in inner}.items() if inner else [(named(folder), folder)]:
            if name in found:
                raise ValueError(
                    f"data.path has two sets named {name}, {found[name]} and {each}: figures go by a folder's name, "
                    "give each once and under a name of its own"
                )
            found[name] = each
    return found


def named(folder: Path) -> str:
    return folder.absolute().name if folder.name not in ("", "..") else folder.resolve().name


def matching(given: str) -> list[Path]:
    """The folder, or those that match a pattern and have something of the layout.

    Raises:
        ValueError: none does.
    """
    whole = Path(given).expanduser()
    if not glob.has_magic(given) or there(whole):
        return [whole]
    found = [Path(each) for each in sorted(glob.glob(str(whole)))]
    found = [each for each in found if has_layout(each) or children(each)]
    if not found:
        raise ValueError(f"data.path={given}: no folder in BEIR layout matches (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv)")
    return found


def has_layout(folder: Path) -> bool:
    return there(folder) and folder.is_dir() and any(there(folder / name) for name in LAYOUT)


def children(folder: Path) -> list[Path]:
    """The sets in a folder that is none itself, by name."""
    if has_layout(folder) or not there(folder) or not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    return sorted(each for each in folder.iterdir() if has_layout(each))
