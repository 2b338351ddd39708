"""Lines of JSON from plain or compressed files, and rows of parquet, with the place of every fault."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain.sources import Fault

HALF = re.compile("[\ud800-\udfff]")  # no tokenizer and no UTF-8 file takes these
UNREADABLE = "unreadable"  # the kind of what ends a file before its end: rows behind it are lost, however many
EDGE = 1 << 20  # bytes hashed at each end of a file


def through_arrow(codec: str) -> Callable[[Path], Any]:
    """Opens what the standard library cannot unpack."""

    def opened(path: Path) -> Any:
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), codec), 1 << 20)

    return opened


# suffix -> (name for messages, what opens it as bytes)
COMPRESSIONS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    ".gz": ("gzip", gzip.open),
    ".bz2": ("bzip2", bz2.open),
    ".xz": ("xz", lzma.open),
    ".zst": ("zstd", through_arrow("zstd")),
    ".lz4": ("lz4", through_arrow("lz4")),
}


class RowError(ValueError):
    """What a line or a row lacks; whoever knows where it stands makes a `Fault` of it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def at(self, where: str) -> Fault:
        return Fault(where, self.kind, f"{where}: {self}")


class Line(NamedTuple):
    """One JSON object and where it stands, as `FILE:LINE`."""

    value: dict[str, Any]
    where: str


class Entry(NamedTuple):
    """One row as a file has it, or what is wrong with it.

    Attributes:
        number: of the line or row, from 1.
        value: the row.
        error: why there is none.
    """

    number: int
    value: Any
    error: RowError | None


def existing(path: str, key: str) -> Path:
    """The path, with `~` expanded.

    Raises:
        ValueError: nothing is there that can be read; names the config key that points at it.
    """
    found = Path(path).expanduser()
    if not there(found):
        raise ValueError(f"{key}={path}: no such file or folder")
    if not found.is_file() and not found.is_dir():  # to open a pipe is to wait for whoever writes to it
        raise ValueError(f"{key}={path}: is no regular file: give one that can be read more than once")
    if not os.access(found, os.R_OK):
        raise ValueError(f"{key}={path}: no permission to read it")
    return found


def there(path: Path) -> bool:
    """Whether a path leads to anything; a link to itself, or a name that no file can have, does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


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
        ValueError: a line that is no JSON object, or bytes that are no UTF-8 or not unpacked; names file and line.
    """
    for number, value, error in entries(path):
        where = f"{path}:{number}"
        if error:
            raise ValueError(error.at(where).message) from error
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {no_object(value)}")
        yield Line(value, where)


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
    """Lines and their numbers, from 1, unpacked on the way.

    Raises:
        ValueError: bytes that are no UTF-8 or not unpacked; names file and line.
    """
    for number, line in unpacked(path):
        try:
            if isinstance(line, RowError):
                raise line
            yield number, decoded(line)
        except RowError as error:
            raise ValueError(error.at(f"{path}:{number}").message) from error


def entries(path: Path) -> Iterator[Entry]:
    """The JSON values of the lines that are not empty; a bad line does not end them."""
    for number, line in unpacked(path):
        if isinstance(line, RowError):
            yield Entry(number, None, line)
        elif line.strip():
            yield entry(number, line)


def entry(number: int, line: bytes) -> Entry:
    try:
        return Entry(number, parsed(decoded(line)), None)
    except RowError as error:
        return Entry(number, None, error)


def unpacked(path: Path) -> Iterator[tuple[int, bytes | RowError]]:
    """Lines and their numbers, from 1; where the file cannot be unpacked further, why, at the line that fails."""
    number = 0
    name, opener = COMPRESSIONS.get(path.suffix, ("", None))
    try:
        # in bytes: a text file decodes ahead, and its error would name an earlier line
        with opener(path) if opener else path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                yield number, line
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if not opener:
            raise
        yield number + 1, RowError(UNREADABLE, f"not a whole {name} file: {error}")


def decoded(line: bytes) -> str:
    try:
        return line.decode("utf8").removeprefix("\ufeff")  # some editors begin a file with this mark
    except UnicodeDecodeError as error:
        raise RowError("malformed", f"not UTF-8 text: {error.reason}") from error


def parsed(text: str) -> Any:
    try:
        value = json.loads(text.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise RowError("malformed", f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists within lists
        raise RowError("malformed", f"not JSON that can be read: {str(error).partition(';')[0]}") from error
    if "\\ud" in text.lower() and HALF.search(json.dumps(value, ensure_ascii=False)):
        raise RowError("malformed", "holds half a character (an escape from \\ud800 to \\udfff without its other half)")
    return value


def no_object(value: Any) -> str:
    """What to say of a line of JSON that is no object."""
    return f'must be a JSON object such as {{"query": "...", "pos": ["..."]}}, got {json.dumps(value)[:60]}'


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
