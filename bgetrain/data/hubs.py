"""Data sets of the Hugging Face hub, and local copies of them."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bgetrain import hub
from bgetrain.data.files import COMPRESSIONS

READ_HERE = (".jsonl", ".parquet", ".arrow", *(f".jsonl{suffix}" for suffix in COMPRESSIONS))


def reached(origin: dict[str, Any]) -> Any:
    """Finds the files of a hub data set or of a local copy of one, downloading what is not here.

    A local copy may be the whole repository, with `README.md` naming its configurations or with a folder for each, or
    the data files alone.

    Args:
        origin: `path` (a hub id or a folder), `config`, `revision`, `split`, `files` (a pattern, or None: what the set says
            itself).

    Returns:
        Paths of files that are read as they are, a list; of other formats (csv, scripts) the `datasets.Dataset`.

    Raises:
        ValueError: it cannot be reached or read; says how to point at files of one's own.
    """
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    path, config = origin["path"], origin["config"]
    if Path(path).is_dir():
        folder = Path(path, config) if config and Path(path, config).is_dir() else Path(path)
        try:
            return named(folder, origin["files"]) if origin["files"] else loaded(str(folder), origin)
        except (DatasetGenerationError, OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"data.path={path}: this folder cannot be read as a data set: {short(error)}{by_name(error)}"
            ) from error
    online = hub.settle()
    try:
        return named(downloaded(origin), origin["files"]) if origin["files"] else loaded(path, origin)
    except (DatasetGenerationError, DatasetNotFoundError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        own = "data=text data.files=[texts.jsonl]" if "text" in origin["columns"] else "data=jsonl data.files=[train.jsonl]"
        reason = f"{short(error)}{by_name(error)}" if online else hub.SILENT
        raise ValueError(
            f"data.path={path}: no local folder, and cannot be reached on the hub ({reason}); "
            f"point data.path=FOLDER at a local copy, or read files of your own with {own}"
        ) from error


def downloaded(origin: dict[str, Any]) -> Path:
    """The folder on this machine that holds the files of a repository that `files` names.

    Not by `datasets`, which refuses a repository that holds a script beside them.
    """
    from huggingface_hub import constants, snapshot_download

    return Path(
        snapshot_download(
            origin["path"],
            repo_type="dataset",
            revision=origin["revision"],
            allow_patterns=origin["files"],
            local_files_only=constants.HF_HUB_OFFLINE,
        )
    )


def named(folder: Path, files: str) -> Any:
    """What is in the files of a folder that a pattern names, a `*` standing for folders as well, as the hub takes it.

    Raises:
        ValueError: there is none.
    """
    import datasets

    inside = (path for path in folder.rglob("*") if path.is_file())
    found = sorted(str(path) for path in inside if fnmatch(path.relative_to(folder).as_posix(), files))
    if not found:
        raise ValueError(f"data.files={files} names no file of it")
    if all(path.endswith(READ_HERE) for path in found):
        # as they are: `datasets` would first write them all anew, and refuses lines that are lists
        return found
    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), data_files={"train": found}, split="train")


def loaded(path: str, origin: dict[str, Any]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    config, split, revision = origin["config"], origin["split"], origin["revision"]
    if Path(path).is_dir():
        revision = None
        known = datasets.get_dataset_config_names(path)
        config = config if config in known else None
    builder = datasets.load_dataset_builder(path, config, revision=revision)
    listed = (builder.config.data_files or {}).get(split)
    if listed and all(str(each).endswith(READ_HERE) for each in listed):
        return [str(each) for each in datasets.DownloadManager().download(list(map(str, listed)))]
    return datasets.load_dataset(path, config, revision=revision, split=split)


def short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def by_name(error: Exception) -> str:
    """What helps where `datasets` has found a script: nothing else makes it raise a RuntimeError."""
    return "; name the files to read with data.files, e.g. data.files=train.jsonl.gz" if isinstance(error, RuntimeError) else ""
