"""The cache of rows and texts that were read and judged: Arrow files, written in parallel, and how to take rows of them.

Opening costs the record batches' headers, not the rows, and the pages are those of the files: processes share them.
"""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bgetrain.data.pieces import place

META = "rows.json"
RELEASE_ROWS = 1024  # taken between two returns of the mapped pages, which else would all count as this process's memory


def schema(kind: str) -> Any:
    """Columns of the cache. `file` is a place in the list of pieces, `line` a number within that piece."""
    import pyarrow

    text, numbers = pyarrow.string(), pyarrow.list_(pyarrow.float64())  # 32-bit offsets: a batch is far below 2 GiB
    if kind == "texts":
        return pyarrow.schema([("text", text)])
    columns = {
        "query": text,
        "pos": pyarrow.list_(text),
        "neg": pyarrow.list_(text),
        "prompt": text,
        "pos_scores": numbers,
        "neg_scores": numbers,
        "file": pyarrow.int32(),
        "line": pyarrow.int32(),
    }
    return pyarrow.schema(list(columns.items()))


class Store:
    """Rows in the Arrow files of one folder, in the order of the files' names.

    Args:
        folder: as `make.py` leaves it.

    A copy in another process, forked or pickled, reads through maps of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / META).read_text("utf8"))
        self.notes: list[str] = meta["notes"]
        self.places: list[tuple[str, str, int]] = meta["places"]
        self.starts = np.cumsum([0, *meta["batches"]])  # of each batch, its first row; then the rows in all
        self.maps: list[mmap.mmap] = []
        self.batches: list[Any] = []
        self.file_of: list[int] = []  # of each batch
        self.advice: list[int] = []  # of each map
        self.blank: set[str] = set()  # columns without any value
        self.chosen: dict[tuple[str, ...], list[Any]] = {}  # the batches with some of the columns
        self.taken = 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "maps": [], "batches": [], "file_of": [], "advice": [], "chosen": {}}

    def map(self) -> None:
        """Maps the files; rows stay on disk until they are taken."""
        import pyarrow

        for path in sorted(self.folder.glob("*.arrow")):
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            opened = pyarrow.ipc.open_file(pyarrow.py_buffer(mapped))
            self.batches += [opened.get_batch(number) for number in range(opened.num_record_batches)]
            self.file_of += [len(self.maps)] * opened.num_record_batches
            self.maps.append(mapped)
            self.advice.append(mmap.MADV_NORMAL)
        names = self.batches[0].schema.names
        # the count stands in the header of the batch: no page of the column is read
        self.blank = {name for name in names if all(each.column(name).null_count == len(each) for each in self.batches)}

    def take(self, indices: Sequence[int], columns: Sequence[str]) -> list[list[Any]]:
        """The values of each of `columns` at `indices`, in that order."""
        import pyarrow

        if not len(indices):
            return [[] for _ in columns]
        if not self.batches:
            self.map()
        rows = np.fromiter(indices, np.int64, len(indices))
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"row {rows.min() if rows.min() < 0 else rows.max()} of {len(self)}")
        batch = np.searchsorted(self.starts, rows, "right") - 1
        # a slice costs a thousandth of what `pyarrow.take` over many batches does; neighbours are one slice
        new = np.flatnonzero((np.diff(rows) != 1) | (np.diff(batch) != 0)) + 1
        first = np.concatenate([[0], new])
        length = np.diff(np.append(first, len(rows)))
        offset = rows[first] - self.starts[batch[first]]
        self.advise(set(batch[first].tolist()), mmap.MADV_NORMAL if len(first) * 8 <= len(rows) else mmap.MADV_RANDOM)
        there = tuple(name for name in columns if name not in self.blank)
        if there not in self.chosen:
            self.chosen[there] = [each.select(there) for each in self.batches]
        slices = [
            self.chosen[there][at].slice(begin, count)
            for at, begin, count in zip(batch[first].tolist(), offset.tolist(), length.tolist(), strict=True)
        ]
        table = pyarrow.Table.from_batches(slices)
        values = [table.column(name).to_pylist() if name in there else [None] * len(rows) for name in columns]
        del table, slices
        self.release(len(rows))
        return values

    def advise(self, batches: set[int], advice: int) -> None:
        """Tells the system whether what stands beside the rows will be read too; for rows drawn at random it is not."""
        for file in {self.file_of[batch] for batch in batches}:
            if self.advice[file] != advice:
                self.maps[file].madvise(advice)
                self.advice[file] = advice

    def release(self, count: int) -> None:
        """Gives pages back to the system's cache of files now and then; they stay there for the next reader."""
        self.taken += count
        if self.taken >= RELEASE_ROWS:
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self.taken = 0

    def where(self, index: int) -> str:
        (file,), (line,) = self.take([index], ["file", "line"])
        path, form, before = self.places[file]
        return place(path, form, before + line)
