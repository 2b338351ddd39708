"""Making the cache: rows are read and judged in several processes, and stand in the order of the files."""

import json
import multiprocessing
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain.data import store
from bgetrain.data.columns import ROW_COLUMNS, listed, top_level
from bgetrain.data.corpora import opened, with_passages
from bgetrain.data.files import UNREADABLE, RowError
from bgetrain.data.pieces import PIECE_BYTES, Piece, lines_between, part_of, pieces, read, with_lines_before
from bgetrain.data.records import Judged, Reading, Record, record
from bgetrain.sources import Fault, Found, Row

MOST_FILES = 256  # of one cache: each stays open
MOST_PROCESSES = 32  # more wait for the disk, and each holds some 300 MB of libraries
BATCH_CHARACTERS = 32 << 20  # of a record batch: few enough to hold, enough that opening many rows opens few batches
MOST_TOLD = 20  # bad rows whose message is kept

SAME = "a query equal to one of its positives"
AMONG = "a positive among its own negatives"
UNUSED = "a label that is neither in data.labels.pos nor in data.labels.neg, and left out"
ALONE = "a query without any positive, and left out"


class Part(NamedTuple):
    """What one process found in some pieces.

    Attributes:
        batches: rows of each record batch written.
        lines: of each piece, its lines, where the next one's lines count on.
        kinds: of bad rows, how many of each kind.
        bad: of the first of them, place of the piece, number of the row and what is wrong.
        remarks: what is odd but used, or left out by a label -> count, and the place of the first.
    """

    batches: list[int]
    lines: list[int]
    kinds: Counter[str]
    bad: list[tuple[int, int, str]]
    remarks: dict[str, tuple[int, int, int]]


def judged(piece: Piece, reading: Reading) -> Iterator[Judged]:
    """Every row of a piece, whether it can be used or not."""
    more = [reading.labels["column"]] if reading.labels else []
    known, least = (("text",), "text") if reading.kind == "texts" else (ROW_COLUMNS, "query")
    wanted = top_level(reading.columns, known, more)
    needed = {str(name).split(".")[0] for name in listed(reading.columns.get(least, least))}
    rows = (judge(entry.number, entry.value, entry.error, reading) for entry in read(piece, wanted, needed))
    return rows if reading.corpus is None else with_passages(rows, reading.corpus)


def judge(number: int, value: Any, error: RowError | None, reading: Reading) -> Judged:
    if error is None:
        try:
            return Judged(number, record(value, reading), None)
        except RowError as refused:
            error = refused
    return Judged(number, None, error)


def scan(reading: Reading, part: int, parts: int) -> Iterator[Found | Fault]:
    """Part i of n of the rows as the files have them: `Source.scan`."""
    for piece, before in with_lines_before(part_of(pieces(reading.paths, reading.origin), part, parts)):
        for number, found, error in judged(piece, reading):
            where = piece.place(before + number if number else 0)
            if error is not None:
                yield error.at(where)
            elif found is not None:
                yield Found(where, found["text"] if reading.kind == "texts" else Row(*(found[name] for name in ROW_COLUMNS)))


def make(folder: Path, reading: Reading, *, skip: bool) -> None:
    """Reads and judges all rows and leaves them in `folder`, which appears when all is there.

    Args:
        folder: of the cache.
        reading: what is read.
        skip: leave bad rows out, and say so in the notes; else the first stops. A file that cannot be read to its end
            stops in any case.

    Raises:
        ValueError: a bad row, or no row at all.
    """
    if reading.corpus is not None:
        opened(reading.corpus)  # its cache is made once, here
    found = pieces(reading.paths, reading.origin)
    jobs = grouped(list(enumerate(found)), sum(piece.size for piece in found), whole=reading.labels is not None)
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    beside.mkdir(parents=True)
    try:
        parts = []
        for part in in_order(write_part, jobs, [beside / f"{number:05d}.arrow" for number in range(len(jobs))], reading, skip):
            parts.append(part)
            if part.kinds and (not skip or part.kinds[UNREADABLE]):
                raise ValueError(told(part.bad[-1:], bases(found, parts), found)[0])
        befores = bases(found, parts)
        kinds = sum((part.kinds for part in parts), Counter[str]())
        notes = [*bad_rows(parts, kinds, befores, found), *remarked(parts, befores, found)]
        batches = [count for part in parts for count in part.batches]
        if not sum(batches):
            what = f"no row of it can be used; {notes[0]}" if notes else "no rows in it"
            raise ValueError(f"{reading.name()}: {what}")
        places = [(piece.path, piece.form, before) for piece, before in zip(found, befores, strict=True)]
        (beside / store.META).write_text(json.dumps({"notes": notes, "places": places, "batches": batches}), "utf8")
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def grouped(found: list[tuple[int, Piece]], total: int, *, whole: bool) -> list[list[tuple[int, Piece]]]:
    """Pieces that one process reads into one file; all of them where rows far from each other are merged."""
    goal = total if whole else max(PIECE_BYTES, total // MOST_FILES)
    jobs: list[list[tuple[int, Piece]]] = []
    size = goal
    for at, piece in found:
        if size >= goal:
            jobs.append([])
            size = 0
        jobs[-1].append((at, piece))
        size += piece.size
    return jobs


def in_order(work: Callable[..., Part], jobs: Sequence[Any], targets: Sequence[Path], *same: Any) -> Iterator[Part]:
    """Runs `work` on each job, in several processes where there are several jobs; the results in order."""
    num_processes = min(len(jobs), len(os.sched_getaffinity(0)), MOST_PROCESSES)
    if num_processes < 2 or multiprocessing.current_process().daemon:  # a daemon may not have children
        yield from map(work, jobs, targets, *map(repeat, same))
        return
    # not fork: the caller may have threads running and a GPU in use
    pool = ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(work, jobs, targets, *map(repeat, same))
    finally:
        pool.shutdown(cancel_futures=True)


def write_part(job: Sequence[tuple[int, Piece]], target: Path, reading: Reading, skip: bool) -> Part:
    """Reads some pieces into one Arrow file; ends where a file breaks off and, without `skip`, at the first bad row."""
    import pyarrow

    part = Part([], [0] * len(job), Counter(), [], {})
    form = store.schema(reading.kind)
    rows = kept(job, reading, part, skip)
    rows = merged(rows, part) if reading.labels else rows
    with pyarrow.ipc.new_file(str(target), form) as file:
        for block in blocks(rows):
            # no list rather than an empty one: a column without any value costs nothing to read
            columns = [[row[name] if row[name] != [] else None for row in block] for name in form.names]
            arrays = [pyarrow.array(values, each.type) for values, each in zip(columns, form, strict=True)]
            file.write_batch(pyarrow.record_batch(arrays, schema=form))
            part.batches.append(len(block))
    for at, (_, piece) in enumerate(job):
        if piece.form == "lines":
            part.lines[at] = lines_between(piece.path, piece.start, piece.stop)
    return part


def kept(job: Sequence[tuple[int, Piece]], reading: Reading, part: Part, skip: bool) -> Iterator[Record]:
    """The rows that are used, with their places; what is told of the others goes into `part`."""
    for at, piece in job:
        for number, found, error in judged(piece, reading):
            if error is not None:
                part.kinds[error.kind] += 1
                ends = not skip or error.kind == UNREADABLE  # half a file is no bad row
                if len(part.bad) < MOST_TOLD or ends:
                    part.bad.append((at, number, str(error)))
                if ends:
                    return
            elif found is None:
                remark(part, UNUSED, at, number)
            elif reading.kind == "texts":
                yield found
            else:
                if found["query"] in found["pos"]:
                    remark(part, SAME, at, number)
                if found["neg"] and not set(found["pos"]).isdisjoint(found["neg"]):
                    remark(part, AMONG, at, number)
                yield {**found, "file": at, "line": number}


def remark(part: Part, text: str, at: int, number: int) -> None:
    count, *first = part.remarks.get(text, (0, at, number))
    part.remarks[text] = (count + 1, first[0], first[1])


def merged(rows: Iterable[Record], part: Part) -> Iterator[Record]:
    """Rows of the same query as one, with all their passages, each once; queries without a positive are left out.

    All rows are in memory: sets with labels are small.
    """
    found: dict[tuple[str, str | None], Record] = {}
    for row in rows:
        into = found.setdefault((row["query"], row["prompt"]), row)
        if into is not row:
            for side in ("pos", "neg"):
                into[side] += [text for text in row[side] if text not in into[side]]
    for row in found.values():
        if row["pos"]:
            if not set(row["pos"]).isdisjoint(row["neg"]):
                remark(part, AMONG, row["file"], row["line"])
            yield row
        else:
            remark(part, ALONE, row["file"], row["line"])


def blocks(rows: Iterable[Record]) -> Iterator[list[Record]]:
    """Rows of about `BATCH_CHARACTERS` together."""
    block: list[Record] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row["text"]) if "text" in row else len(row["query"]) + sum(map(len, row["pos"])) + sum(map(len, row["neg"]))
        size += 64  # what a short row costs besides
        if size >= BATCH_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def bases(found: Sequence[Piece], parts: Sequence[Part]) -> list[int]:
    """Of each piece, the lines of its file before it; of pieces not read yet 0."""
    lines = [count for part in parts for count in part.lines]
    before = [0] * len(found)
    for at in range(1, min(len(lines) + 1, len(found))):
        if found[at].form == "lines" and found[at].start:
            before[at] = before[at - 1] + lines[at - 1]
    return before


def told(bad: Sequence[tuple[int, int, str]], befores: Sequence[int], found: Sequence[Piece]) -> list[str]:
    return [f"{found[at].place(number and befores[at] + number)}: {text}" for at, number, text in bad]


def bad_rows(parts: Sequence[Part], kinds: Counter[str], befores: Sequence[int], found: Sequence[Piece]) -> list[str]:
    if not kinds:
        return []
    first = told([each for part in parts for each in part.bad][:MOST_TOLD], befores, found)
    rows = sum(kinds.values()) + sum(count for part in parts for count in part.batches)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    shown = "they are" if len(first) == sum(kinds.values()) else f"the first {len(first)} are"
    return [f"left out {sum(kinds.values()):,} bad rows of {rows:,} ({counts}); {shown}:", *(f"  {text}" for text in first)]


def remarked(parts: Sequence[Part], befores: Sequence[int], found: Sequence[Piece]) -> list[str]:
    notes = []
    for text in (SAME, AMONG, UNUSED, ALONE):
        seen = [part.remarks[text] for part in parts if text in part.remarks]
        if seen:
            _, at, number = seen[0]
            count = sum(each[0] for each in seen)
            where = found[at].place(number and befores[at] + number)
            notes.append(f"{count:,} {'row has' if count == 1 else 'rows have'} {text}; the first is {where}")
    return notes
