"""Lines of JSON from plain or compressed files, and rows of parquet, with the place of every fault."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HALF = re.compile("[\ud800-\udfff]")  # no tokenizer and no UTF-8 file takes these
EDGE = 1 << 20  # bytes hashed at each end of a file


class Line(NamedTuple):
    """One JSON object and where it stands, as `FILE:LINE`."""

    value: dict[str, Any]
    where: str


def existing(path: str, key: str) -> Path:
    """The path, with `~` expanded.

    Raises:
        ValueError: nothing is there; names the config key that points at it.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise ValueError(f"{key}={path}: no such file or folder")
    if not os.access(found, os.R_OK):
        raise ValueError(f"{key}={path}: no permission to read it")
    return found


def either(folder: Path, name: str) -> Path:
    """`folder/name` or `folder/name.gz`, whichever is there.

    Raises:
        ValueError: neither is.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{folder}: has neither {name} nor {name}.gz")


def lines(path: Path) -> Iterator[Line]:
    """The JSON objects of a file, one a line; empty lines are passed over.

    Raises:
        ValueError: a line that is no JSON object, or bytes that are no UTF-8 or no gzip; names file and line.
    """
    for number, text in numbered(path):
        if text.strip():
            yield Line(parsed(text, f"{path}:{number}"), f"{path}:{number}")


def parquet(path: Path) -> Iterator[Line]:
    import pyarrow
    import pyarrow.parquet

    try:
        groups = pyarrow.parquet.ParquetFile(path).iter_batches(1024)
        for number, row in enumerate((row for group in groups for row in group.to_pylist()), 1):
            yield Line(row, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: cannot be read as parquet: {error}") from error


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and their numbers, from 1; `.gz` is unpacked on the way.

    Raises:
        ValueError: bytes that are no UTF-8 or no gzip; names file and line.
    """
    number = 0
    try:
        # decoded line by line: a text file decodes ahead, and its error would name an earlier line
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as handle:
            for number, line in enumerate(handle, 1):
                yield number, line.decode("utf8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not UTF-8 text: {error.reason}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}:{number + 1}: not a whole gzip file: {error}") from error


def parsed(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise ValueError(f'{where}: must be a JSON object such as {{"query": "...", "pos": ["..."]}}, got {text.strip()[:60]}')
    if "\\ud" in text.lower() and HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError(f"{where}: holds half a character (an escape from \\ud800 to \\udfff without its other half)")
    return value


def fingerprint(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size and a hash of both ends of each file, enough to tell that a file has changed."""
    found = {}
    for path in map(Path, paths):
        digest = hashlib.sha256()
        with path.open("rb") as handle:
            digest.update(handle.read(EDGE))
            handle.seek(max(0, path.stat().st_size - EDGE))
            digest.update(handle.read(EDGE))
        found[str(path)] = {"bytes": path.stat().st_size, "sha256_of_ends": digest.hexdigest()}
    return found
