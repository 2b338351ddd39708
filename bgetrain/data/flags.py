"""Folders in FlagEmbedding's layout: each file a set, whose rules stand in its name and in its rows."""

from pathlib import Path
from typing import Any, NamedTuple

from bgetrain.data.files import COMPRESSIONS, existing
from bgetrain.data.pieces import pieces_of, read, with_lines_before

SUFFIXES = (".parquet", ".json", ".jsonl", *(f".jsonl{suffix}" for suffix in COMPRESSIONS))
ALONE = "no_in_batch_neg"  # FlagEmbedding: AbsDataset.py, AbsEmbedderSameDatasetTrainDataset


class FlagFile(NamedTuple):
    """One set.

    Attributes:
        path: the file.
        type: what its rows have under `type`, e.g. "symmetric_sts"; None: they have none.
        in_batch: whether passages of other queries serve as negatives.
    """

    path: str
    type: str | None
    in_batch: bool


def flagembedding_files(path: str) -> list[FlagFile]:
    """The sets of a folder, or the one of a file, sorted by path; all rows are read for their `type`.

    A folder's files are those directly in it, and those of the folders in it. The name of a file or of the folder that it
    is in, ending in `no_in_batch_neg`, leaves a query the negatives of its own row.

    Raises:
        ValueError: there is no such file, or the rows of one disagree about their type.
    """
    root = existing(path, "data.path")
    files = [root] if root.is_file() else sorted(each for each in root.rglob("*") if each.is_file() and named(each))
    if not files:
        raise ValueError(f"data.path={path}: has no {', '.join(SUFFIXES)} file")
    return [FlagFile(str(each), type_of(str(each)), in_batch(each)) for each in files]


def named(path: Path) -> bool:
    return path.name.endswith(SUFFIXES)


def in_batch(path: Path) -> bool:
    suffix = max((each for each in SUFFIXES if path.name.endswith(each)), key=len, default=path.suffix)
    stem = path.name[: len(path.name) - len(suffix)] if suffix else path.name
    return not stem.endswith(ALONE) and not path.absolute().parent.name.endswith(ALONE)


def type_of(path: str) -> str | None:
    """The `type` that every row of a file has, or None; lines that are no rows are left to the reader of rows.

    Raises:
        ValueError: rows disagree, or one is no text.
    """
    first: tuple[Any, str] | None = None
    for piece, before in with_lines_before(pieces_of(path)):
        for number, row, error in read(piece, {"type"}, set()):
            if error is not None or not isinstance(row, dict):
                continue
            where, found = piece.place(before + number), row.get("type")
            if found is not None and not isinstance(found, str):
                raise ValueError(f"{where}: 'type' must be a text, got {found!r}")
            if first is None:
                first = (found, where)
            elif found != first[0]:
                raise ValueError(
                    f"{where}: 'type' is {found!r}, and {first[0]!r} at {first[1]}: the rows of a file must have the same, "
                    "put others into a file of their own"
                )
    return first[0] if first else None
