"""Documents as spans of token ids: nothing is cut away. Made once, kept on disk, and read from there."""

import json
import mmap
import multiprocessing
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgetrain.data.cuts import BEGINS, DOCUMENT, ID, ID_BITS, SPECIAL, marked, spans_of
from bgetrain.data.texts import Tokens, Truncated
from bgetrain.data.tokenize import special_ids
from bgetrain.data.workers import in_parallel
from bgetrain.sources import Texts
from bgetrain.types import NonNegativeInt, Ragged

FORMAT = 2  # of the folder; who names folders has it in the name, so that a change makes old ones unused
BLOCK = 1000  # texts read at a time
MOST_PIECES = 256  # files on the way; what a preparation that is killed loses is one of them for each worker
WORTH = 5000  # texts for which a process is worth its start
JOINED = 1 << 22  # tokens cut at a time
RELEASE_SPANS = 1024  # taken between two returns of the mapped pages, which else would all count as this process's memory
META, IDS, OFFSETS = "spans.json", "ids.uint32", "offsets.int64"


class Work(NamedTuple):
    """What the processes are told that tokenise.

    Attributes:
        texts: the documents.
        tokenizer: a fast tokenizer of transformers.
        folder: where they leave their pieces, `00000.tokens` and so on: documents of `cuts.marked`, end to end.
        sentences: mark the ends of sentences.
    """

    texts: Texts
    tokenizer: Any
    folder: Path
    sentences: bool


def spans(
    texts: Texts,
    tokenizer: Any,
    max_len: int,
    folder: Path,
    *,
    cut: Literal["truncate", "sentences", "tokens"],
    across: bool,
    num_workers: NonNegativeInt,
    advance: Callable[[int], None],
) -> Tokens:
    """Texts as they are trained on.

    Args:
        texts: documents; they are read `BLOCK` at a time.
        tokenizer: a fast tokenizer of transformers.
        max_len: tokens of an item, special tokens included.
        folder: keeps the spans, beside files of its name with a dot before or `.lock` behind: it appears when they are
            whole, and is used where it is there. Its name must tell apart all that decides them: `FORMAT`, texts,
            tokenizer, max_len, cut and across. A preparation that was killed goes on where it was.
        cut: truncate: an item is the beginning of a text, the rest is never seen, and nothing is prepared | sentences:
            texts are cut at the last sentence end that fits, where it leaves a span at least half full, else at the last
            word boundary | tokens: texts are cut at the last word boundary. Words of more than `tokenize.LONGEST_WORD` tokens
            may be cut.
        across: the next document goes on where one ends within a span, with the tokenizer's separator between them.
        num_workers: processes that tokenise; 0 or 1: this one. The spans are the same for any number.
        advance: told how many texts have been tokenised since it was last told.

    Raises:
        ValueError: across without spans or without a separator, max_len without room for a token, no token in any text.
    """
    if cut == "truncate":
        if across:
            raise ValueError("across=true needs cut=sentences or cut=tokens: cut=truncate keeps one text in each item")
        return Truncated(texts, tokenizer, max_len)
    if not folder.is_dir():
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of several runs or ranks that begin at once one prepares
            if not folder.is_dir():
                prepare(texts, tokenizer, max_len, folder, cut == "sentences", across, num_workers, advance)
    return Spans(folder)


class Spans:
    """Spans in a folder, as `prepare` leaves it; a pickled copy maps the files again.

    Attributes:
        facts: of the documents, to state before the first step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / META).read_text("utf8"))
        self.facts: dict[str, str] = meta["facts"]
        self.count = int(meta["spans"])
        self.before, self.after = (np.array(meta[side], np.uint32) | SPECIAL for side in ("before", "after"))
        self.maps: dict[str, mmap.mmap] = {}
        self.taken = 0

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "maps": {}}

    def take(self, indices: Sequence[int]) -> tuple[Ragged, Tensor]:
        if min(indices) < 0 or max(indices) >= self.count:
            raise IndexError(f"span {min(indices) if min(indices) < 0 else max(indices)} of {self.count}")
        numbers = np.fromiter(indices, np.int64, len(indices))
        offsets, ids = self.mapped(OFFSETS, np.int64), self.mapped(IDS, np.uint32)
        starts, ends = offsets[numbers], offsets[numbers + 1]
        parts = [
            part
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            for part in (self.before, ids[start:end], self.after)
        ]
        tokens = np.concatenate(parts)
        lengths = ends - starts + len(self.before) + len(self.after)
        self.release(len(numbers))
        # words are counted over the whole batch, then from 0 in each span
        counts = np.cumsum(tokens & BEGINS > 0)
        spans_before = np.concatenate([[0], counts[lengths.cumsum()[:-1] - 1]])
        words = np.where(tokens & SPECIAL, -1, counts - 1 - np.repeat(spans_before, lengths))
        text = Ragged(torch.from_numpy((tokens & ID).astype(np.int64)), torch.from_numpy(lengths))
        return text, torch.from_numpy(words)

    def mapped(self, name: str, dtype: type) -> np.ndarray:
        """One of the files; its pages are the system's, which all processes share."""
        if name not in self.maps:
            with (self.folder / name).open("rb") as file:
                self.maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.maps[name].madvise(mmap.MADV_RANDOM)  # what stands beside a span is not read next
        return np.frombuffer(self.maps[name], dtype)

    def release(self, count: int) -> None:
        """Gives pages back to the system's cache of files now and then; they stay there for the next reader."""
        self.taken += count
        if self.taken >= RELEASE_SPANS:
            for each in self.maps.values():
                each.madvise(mmap.MADV_DONTNEED)
            self.taken = 0


def prepare(
    texts: Texts,
    tokenizer: Any,
    max_len: int,
    folder: Path,
    sentences: bool,
    across: bool,
    num_workers: int,
    advance: Callable[[int], None],
) -> None:
    """Makes the folder of `spans`: tokenises in pieces, each of them whole or not there, then cuts them in their order."""
    before, after = around(tokenizer)
    room = max_len - len(before) - len(after)
    if room < 1:
        raise ValueError(
            f"max_len={max_len} has no room for a token besides the tokenizer's {len(before) + len(after)} special tokens: "
            f"use {max_len - room + 1} or more"
        )
    separator = separator_of(tokenizer) if across else None
    assert len(tokenizer) < 1 << ID_BITS
    beside = folder.with_name(f".{folder.name}")
    pieces, made = beside / "pieces", beside / "made"
    for each in (pieces, made):
        each.mkdir(parents=True, exist_ok=True)
    processes = max(1, min(num_workers, len(texts) // WORTH))
    if multiprocessing.current_process().daemon:  # which may not have children
        processes = 1
    in_parallel(write_pieces, Work(texts, tokenizer, pieces, sentences), processes, advance)
    tally = Tally(room)
    with (made / IDS).open("wb") as ids, (made / OFFSETS).open("wb") as offsets:
        end = np.zeros(1, np.int64)
        offsets.write(end.data)
        for tokens, lengths in spans_of(tally.watch(read(pieces)), room, sentences=sentences, separator=separator):
            ids.write(tokens.data)
            ends = end[-1] + lengths.cumsum()
            offsets.write(ends.data)
            end = np.concatenate([end, ends])[-1:]
            tally.spans += len(lengths)
    if not tally.spans:
        shutil.rmtree(beside, ignore_errors=True)
        raise ValueError(f"none of the {len(texts):,} documents has a token")
    filled = f"{end[0] / tally.spans / room:.1%} full"
    facts = {
        "documents": f"{tally.documents:,} of {tally.tokens:,} tokens, in {tally.spans:,} spans of at most {max_len}, {filled}",
        "documents that exceed one span": f"{tally.long:,}; truncation would lose {tally.lost / tally.tokens:.1%} of all tokens",
    }
    if tally.documents < len(texts):
        facts["documents without a token"] = f"{len(texts) - tally.documents:,}, left out"
    meta = {"facts": facts, "spans": tally.spans, "before": before, "after": after}
    (made / META).write_text(json.dumps(meta), "utf8")
    made.rename(folder)
    shutil.rmtree(beside, ignore_errors=True)


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the special tokens that the tokenizer puts before and after a text."""
    inside = tokenizer.backend_tokenizer
    inside.no_truncation()
    inside.no_padding()
    encoded = inside.encode("a")
    special = [*encoded.special_tokens_mask, 0]
    first = special.index(0)
    after = encoded.ids[first + special[first:].count(0) - 1 :]
    assert first + len(after) == inside.num_special_tokens_to_add(False)
    return encoded.ids[:first], after


def separator_of(tokenizer: Any) -> int:
    for name in ("sep_token_id", "eos_token_id"):
        if getattr(tokenizer, name) is not None:
            return int(getattr(tokenizer, name))
    raise ValueError("across=true needs a token between documents, and the tokenizer has neither sep_token nor eos_token")


def piece_ranges(num_texts: int) -> list[range]:
    """The texts of each piece: the same for any number of workers, so that another number may go on with them."""
    size = max(1, -(-num_texts // MOST_PIECES))
    return [range(start, min(start + size, num_texts)) for start in range(0, num_texts, size)]


def write_pieces(work: Work, part: int, parts: int, advance: Callable[[int], None]) -> None:
    """Tokenises every `parts`-th piece; those that are there already are left as they are."""
    inside, special = work.tokenizer.backend_tokenizer, special_ids(work.tokenizer)
    inside.no_truncation()
    inside.no_padding()
    for number, numbers in list(enumerate(piece_ranges(len(work.texts))))[part::parts]:
        path = work.folder / f"{number:05d}.tokens"
        if path.exists():
            advance(len(numbers))
            continue
        # a name of its own: workers of a preparation that was killed may live for a moment longer
        unfinished = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
        with unfinished.open("wb") as file:
            for start in range(numbers.start, numbers.stop, BLOCK):
                for text in work.texts.take(range(start, min(start + BLOCK, numbers.stop))):
                    file.write(marked(inside, text, special, sentences=work.sentences).data)
                    advance(1)
        unfinished.replace(path)


def read(folder: Path) -> Iterator[np.ndarray]:
    """The pieces of a folder, in order, at most `JOINED` tokens at a time."""
    for path in sorted(folder.glob("*.tokens")):
        with path.open("rb") as file:
            while len(tokens := np.fromfile(file, np.uint32, JOINED)):
                yield tokens


class Tally:
    """Counts documents as they pass.

    Args:
        room: tokens of a span.

    Attributes:
        documents: with a token at least.
        long: of more than `room` tokens.
        tokens: of all documents.
        lost: tokens of them behind their first `room`.
        spans: counted by who makes them.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.documents = self.long = self.tokens = self.lost = self.spans = 0

    def watch(self, stream: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        first = 0  # of the document that has not ended
        for tokens in stream:
            firsts = np.flatnonzero(tokens & DOCUMENT) + self.tokens
            self.add(np.diff(np.concatenate([[first], firsts])))
            self.documents += len(firsts)
            self.tokens += len(tokens)
            first = int(firsts[-1]) if len(firsts) else first
            yield tokens
        self.add(np.array([self.tokens - first]))

    def add(self, lengths: np.ndarray) -> None:
        self.long += int((lengths > self.room).sum())
        self.lost += int(np.maximum(lengths - self.room, 0).sum())
