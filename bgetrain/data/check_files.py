"""Files as a check meets them before it reads their rows."""

from pathlib import Path
from typing import Any

from bgetrain.data.files import COMPRESSIONS
from bgetrain.sources import Source

HEAD = 1 << 20  # bytes of a file from which its rows are estimated
PACKED = 4.0  # text to what it takes compressed, about


def refuse_binary(path: Path) -> None:
    """Refuses a file of lines that holds none.

    Raises:
        ValueError: a zero byte stands at its beginning.
    """
    if {".jsonl", ".json", ".tsv", ".txt"} & set(path.suffixes):
        head = beginning(path)
        if b"\0" in head:
            raise ValueError(
                f"{path}: not a text file, byte {head.index(0)} of it is zero: give .jsonl (plain or compressed) or .parquet"
            )


def estimated_rows(source: Source) -> int:
    """About how many rows a source has, for the progress bar: from the beginnings of its files."""
    paths = [Path(file) for file in source.files]
    qrels = [path for path in paths if path.suffix == ".tsv" and path.stem == source.split]
    lines = sum(estimated_lines(path) for path in qrels or paths if path.suffix != ".parquet")
    return max(1, lines + parquet_rows(paths))


def estimated_lines(path: Path) -> int:
    head = beginning(path)
    lines = head.count(b"\n") + (not head.endswith(b"\n") and bool(head))
    if len(head) < HEAD:
        return lines
    return int(lines * (PACKED if path.suffix in COMPRESSIONS else 1.0) * path.stat().st_size / HEAD)


def parquet_rows(paths: list[Path]) -> int:
    import pyarrow
    import pyarrow.parquet

    total = 0
    for path in paths:
        if path.suffix == ".parquet":
            try:
                total += pyarrow.parquet.read_metadata(path).num_rows
            except (pyarrow.ArrowException, OSError):
                continue  # the reader says what is wrong
    return total


def beginning(path: Path) -> bytes:
    """The first bytes of a file, unpacked; none where it cannot be, which the reader says."""
    try:
        opened: Any = COMPRESSIONS[path.suffix][1](path) if path.suffix in COMPRESSIONS else path.open("rb")
        with opened as file:
            return bytes(file.read(HEAD))
    except (OSError, EOFError, ValueError):
        return b""
