"""From paths and patterns to the files that are read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bgetrain.data.files import existing


def named_files(patterns: Sequence[str], split: str) -> list[str]:
    """The files that `data.files` names.

    Raises:
        ValueError: there is none.
    """
    paths = [path for pattern in patterns for path in matching(pattern, split)]
    if not paths:
        raise ValueError("data.files=[] is empty: give at least one file")
    return paths


def matching(pattern: str, split: str) -> list[str]:
    """The files that a path or a pattern names, sorted.

    Raises:
        ValueError: there is none.
    """
    path = Path(pattern).expanduser()
    if any(sign in pattern for sign in "*?["):
        found = sorted(each for each in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if each.is_file())
        if not found:
            raise ValueError(f"data.files: {pattern} matches no file")
        return [str(each) for each in found]
    file = existing(pattern, "data.files")
    saved = saved_files(file, split)
    if file.is_dir() and not saved:
        raise ValueError(f"data.files: {pattern} is a folder: name its files, e.g. [{pattern.rstrip('/')}/*.jsonl]")
    return saved or [str(file)]


def saved_files(folder: Path, split: str) -> list[str]:
    """The Arrow files of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; none for other folders.

    Raises:
        ValueError: it has several splits, and `split` is none of them.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = saved_facts(folder / "dataset_dict.json", "splits")
        if split not in splits:
            raise ValueError(f"data.split={split}: {folder} has {', '.join(splits)}")
        folder = folder / split
    if not (folder / "state.json").is_file():
        return []
    names: list[Any] = [
        each.get("filename") if isinstance(each, dict) else None for each in saved_facts(folder / "state.json", "_data_files")
    ]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:  # a folder from elsewhere must not have others' files read
            raise ValueError(f"{folder / 'state.json'}: {name!r} is not the name of a file of this folder")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: no such file, which {folder / 'state.json'} names")
    return [str(folder / name) for name in names]


def saved_facts(path: Path, key: str) -> list[Any]:
    """A list out of the JSON that `datasets` saved.

    Raises:
        ValueError: the file is not what it writes.
    """
    try:
        found = json.loads(path.read_text("utf8"))[key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not what datasets' save_to_disk writes: save the set again") from error
    if not isinstance(found, list):
        raise ValueError(f"{path}: {key} must be a list, got {type(found).__name__}")
    return found


def checked_corpus(corpus: str | None) -> str | None:
    return None if corpus is None else str(existing(corpus, "data.corpus"))


def folder_files(folder: Path) -> list[str]:
    """All files under a folder; none where it is no folder."""
    return [str(each) for each in sorted(folder.rglob("*")) if each.is_file()] if folder.is_dir() else []


def corpus_files(corpus: str | None) -> list[str]:
    if corpus is None:
        return []
    path = Path(corpus)
    return [str(each) for each in sorted(path.iterdir()) if each.is_file()] if path.is_dir() else [corpus]
