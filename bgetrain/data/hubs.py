"""Data sets of the Hugging Face hub, and local copies of them."""

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
        origin: `path` (a hub id or a folder), `config`, `split`, `files` (a pattern, or None: what the set says itself).

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
            return loaded(str(folder), config, origin["split"], origin["files"])
        except (DatasetGenerationError, OSError, ValueError) as error:
            raise ValueError(f"data.path={path}: this folder cannot be read as a data set: {short(error)}") from error
    online = hub.settle()
    try:
        return loaded(path, config, origin["split"], origin["files"])
    except (DatasetGenerationError, DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        own = "data=text data.files=[texts.jsonl]" if "text" in origin["columns"] else "data=jsonl data.files=[train.jsonl]"
        reason = short(error) if online else hub.SILENT
        raise ValueError(
            f"data.path={path}: no local folder, and cannot be reached on the hub ({reason}); "
            f"point data.path=FOLDER at a local copy, or read files of your own with {own}"
        ) from error


def loaded(path: str, config: str | None, split: str, files: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    given = {} if files is None else {"data_files": {split: files}}
    if Path(path).is_dir() and files is None:
        known = datasets.get_dataset_config_names(path)
        config = config if config in known else None
    builder = datasets.load_dataset_builder(path, config, **given)
    named = (builder.config.data_files or {}).get(split)
    if named and all(str(each).endswith(READ_HERE) for each in named):
        # as they are: `datasets` would first write them all anew, and refuses lines that are lists
        return [str(each) for each in datasets.DownloadManager().download(list(map(str, named)))]
    return datasets.load_dataset(path, config, split=split, **given)


def short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
