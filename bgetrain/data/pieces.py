"""Sources cut into pieces that several processes can read at once, and each row's place in its file."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain.data.files import COMPRESSIONS, UNREADABLE, Entry, RowError, entries, entry
from bgetrain.data.hubs import reached

PIECE_BYTES = 64 << 20  # of a file; some seconds' work, and one Arrow file of the cache
READ_ROWS = 1024  # of parquet and Arrow, in memory at a time


class Piece(NamedTuple):
    """Rows of one source that stand together.

    Attributes:
        path: the file, or the name of a hub set.
        form: how it is read: lines, packed (lines under compression), parquet, arrow, or table (of `datasets`).
        start: first byte of lines, first row group, record batch or row of the others.
        stop: one past the last.
        size: bytes, near enough to share the work.
        table: where form is table.
    """

    path: str
    form: str
    start: int
    stop: int
    size: int
    table: Any = None

    def place(self, number: int) -> str:
        return place(self.path, self.form, number)


def place(path: str, form: str, number: int) -> str:
    """`FILE:LINE` of lines, `FILE, row N` of other forms; number 0: all of the file."""
    if not number:
        return path
    return f"{path}:{number}" if form in ("lines", "packed") else f"{path}, row {number}"


def pieces(paths: Sequence[str], origin: dict[str, Any] | None) -> list[Piece]:
    """All pieces, in the order of the files and of the rows in each.

    Raises:
        ValueError: a data set cannot be reached or read.
    """
    if origin is None:
        return [piece for path in paths for piece in pieces_of(path)]
    found = reached(origin)
    if isinstance(found, list):
        return [piece for path in found for piece in pieces_of(path)]
    step = max(READ_ROWS, len(found) // max(1, (found.data.nbytes or 0) // PIECE_BYTES))
    return [
        Piece(origin["path"], "table", start, min(start + step, len(found)), PIECE_BYTES, found)
        for start in range(0, len(found), step)
    ]


def pieces_of(path: str) -> list[Piece]:
    size, suffix = os.path.getsize(path), Path(path).suffix
    if suffix in COMPRESSIONS:
        return [Piece(path, "packed", 0, size, size)]
    if suffix in (".parquet", ".arrow"):
        form = suffix[1:]
        try:
            count = len(parts_of_table(path))
        except (OSError, ValueError):  # `read` says what is wrong
            count = 1
        edges = sorted({*range(0, count, max(1, count * PIECE_BYTES // max(size, 1))), count})
    else:
        form, edges = "lines", line_edges(path, size)
    return [Piece(path, form, *pair, size // max(1, len(edges) - 1)) for pair in itertools.pairwise(edges)]


def line_edges(path: str, size: int) -> list[int]:
    """Bytes at which pieces begin, each at the begin of a line, and the size."""
    edges = [0]
    with open(path, "rb") as file:
        for goal in range(PIECE_BYTES, size, PIECE_BYTES):
            if goal > edges[-1]:
                file.seek(goal - 1)
                file.readline()
                edges.append(file.tell())
    return edges if edges[-1] == size and size else [*edges, size]


def part_of(found: Sequence[Piece], part: int, parts: int) -> list[Piece]:
    """Those of part i of n: of about as many bytes as the others, one after the other."""
    total, before, chosen = sum(piece.size for piece in found), 0, []
    for piece in found:
        if (before + piece.size / 2) * parts // max(total, 1) == part:
            chosen.append(piece)
        before += piece.size
    return chosen


def with_lines_before(found: Sequence[Piece]) -> Iterator[tuple[Piece, int]]:
    """Pieces and what is to be added to the numbers that `read` gives: the lines of the file before the piece."""
    before, last = 0, None
    for piece in found:
        if piece.form != "lines" or not piece.start:
            before = 0
        elif last and last.path == piece.path:
            before += lines_between(piece.path, last.start, piece.start)
        else:
            before = lines_between(piece.path, 0, piece.start)
        yield piece, before
        last = piece


def lines_between(path: str, start: int, stop: int) -> int:
    """Ends of lines among these bytes."""
    count = 0
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop and (block := file.read(min(1 << 20, stop - start))):
            count += block.count(b"\n")
            start += len(block)
    return count


def read(piece: Piece, wanted: set[str], needed: set[str]) -> Iterator[Entry]:
    """The rows of a piece; numbers count from its file's first row, those of lines from the piece's own.

    Args:
        piece: what is read.
        wanted: columns that are looked at.
        needed: of these, those without which no row is any good: where one is missing all columns are read, for messages.
    """
    if piece.form == "packed":
        yield from entries(Path(piece.path))
    elif piece.form == "lines":
        yield from read_lines(piece)
    elif piece.form == "table":
        names = piece.table.column_names
        chosen = piece.table.select_columns([name for name in names if name in wanted or not needed <= set(names)])
        for start in range(piece.start, piece.stop, READ_ROWS):
            block = chosen.with_format("arrow")[start : min(start + READ_ROWS, piece.stop)]
            yield from (Entry(number, row, None) for number, row in enumerate(block.to_pylist(), start + 1))
    else:
        yield from read_table(piece, wanted, needed)


def read_lines(piece: Piece) -> Iterator[Entry]:
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        left = piece.stop - piece.start
        for number, line in enumerate(file, 1):
            if line.strip():
                yield entry(number, line)
            left -= len(line)
            if left <= 0:
                break


def read_table(piece: Piece, wanted: set[str], needed: set[str]) -> Iterator[Entry]:
    """Rows of parquet or Arrow files; number 0 for what concerns all of the file."""
    number = 0
    try:
        number = sum(parts_of_table(piece.path)[: piece.start])
        for batch in batches(piece, wanted, needed):
            for start in range(0, batch.num_rows, READ_ROWS):
                for row in batch.slice(start, READ_ROWS).to_pylist():
                    number += 1
                    yield Entry(number, row, None)
    except (OSError, ValueError) as error:  # Arrow's own are among them
        kind = {"parquet": "parquet", "arrow": "an Arrow file"}[piece.form]
        yield Entry(0, None, RowError(UNREADABLE, f"cannot be read as {kind}: {' '.join(str(error).split())}"))


def parts_of_table(path: str) -> list[int]:
    """Rows of each row group of a parquet file, or of each record batch of an Arrow file."""
    import pyarrow.parquet

    if path.endswith(".parquet"):
        metadata = pyarrow.parquet.ParquetFile(path).metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return [batch.num_rows for batch in arrow_batches(path)]


def arrow_batches(path: str) -> Iterator[Any]:
    """Of a file in Arrow's file format, or in its stream format, which is what `datasets` writes."""
    import pyarrow

    with pyarrow.memory_map(path) as source:
        try:
            opened = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            yield from pyarrow.ipc.open_stream(source)
        else:
            for number in range(opened.num_record_batches):
                yield opened.get_batch(number)


def batches(piece: Piece, wanted: set[str], needed: set[str]) -> Iterator[Any]:
    import pyarrow.parquet

    if piece.form == "parquet":
        file = pyarrow.parquet.ParquetFile(piece.path)
        there = set(file.schema_arrow.names)
        columns = sorted(wanted & there) if needed <= there else None
        yield from file.iter_batches(READ_ROWS, row_groups=list(range(piece.start, piece.stop)), columns=columns)
        return
    for batch in itertools.islice(arrow_batches(piece.path), piece.start, piece.stop):
        there = set(batch.schema.names)
        yield batch.select(sorted(wanted & there)) if needed <= there else batch
