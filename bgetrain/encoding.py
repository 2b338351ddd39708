"""How `Embedder` embeds: texts in pieces by length, the next tokenised ahead, shared out over processes."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bgetrain.cluster import crew
from bgetrain.data import tokenize as tokens
from bgetrain.loading import Ready, Settings, load
from bgetrain.search import encode
from bgetrain.types import Ragged

LETTERS, TEXTS = 4_000_000, 16_384  # of a piece at most; our choice: a second or so of a GPU, some 30 MB of token ids
CPU_TOKENS = 4096  # of a pass on a CPU where nobody says how many: measured, 1,024 and 16,384 take a tenth longer
PIECES = 6  # of each device at least, so that none waits long for the last


class Plan(NamedTuple):
    """One call.

    Attributes:
        texts: without instruction.
        instruction: a format and what is put into it beside the text; None: the texts are as they are.
        max_len: tokens at which a text is cut.
        budget: tokens of a pass at most.
        exact: whether a CPU takes that many as well.
    """

    texts: Sequence[str]
    instruction: tuple[str, str] | None
    max_len: int
    budget: int
    exact: bool


class Piece(NamedTuple):
    """Some texts of a call; `places` int64 [n] are theirs among all."""

    places: np.ndarray
    texts: list[str]


class Pieces:
    """Texts of like length together, longest first, taken by several threads until all are or one stops."""

    def __init__(self, plan: Plan, *, parts: int) -> None:
        self.plan, self.lock, self.stopped, self.taken = plan, threading.Lock(), False, 0
        letters = np.fromiter(map(len, plan.texts), np.int64, len(plan.texts))
        self.order = np.argsort(-letters, kind="stable")
        # an instruction and special tokens count as well, and an empty text costs something
        sums = np.cumsum(letters[self.order] + 16)
        most = LETTERS if parts == 1 else min(LETTERS, -(-int(sums[-1]) // (PIECES * parts)))
        self.ends = ends_of(sums, most)

    def __iter__(self) -> Iterator[Piece]:
        while True:
            with self.lock:
                if self.stopped or self.taken == len(self.ends):
                    return
                first = self.ends[self.taken - 1] if self.taken else 0
                places = self.order[first : self.ends[self.taken]]
                self.taken += 1
            texts = [self.plan.texts[place] for place in places]
            if self.plan.instruction is not None:
                form, instruction = self.plan.instruction
                texts = [form.format(instruction, text) for text in texts]
            yield Piece(places, texts)


def ends_of(sums: np.ndarray, most: int) -> list[int]:
    """Where pieces of at most `most` letters and `TEXTS` texts end, at least one text each.

    Args:
        sums: int64 [N], letters up to each text, it included.
        most: letters of a piece.
    """
    ends = [0]
    while ends[-1] < len(sums):
        before = int(sums[ends[-1] - 1]) if ends[-1] else 0
        end = int(np.searchsorted(sums, before + most, side="right"))
        ends.append(min(max(end, ends[-1] + 1), ends[-1] + TEXTS))
    return ends[1:]


def embedded(
    ready: Ready, pieces: Iterable[Piece], plan: Plan, advance: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Places and vectors [n, D] of each piece; the next is tokenised meanwhile."""
    settings = ready.settings
    most = CPU_TOKENS if ready.encoder.device.type == "cpu" and not plan.exact else plan.budget
    ready.budget = min(plan.budget, most, ready.limit or plan.budget)
    read = encode.ahead(lambda piece: (piece.places, tokenized(ready, piece, plan.max_len)), pieces)
    for places, text in read:
        rows = encode.embed(ready.encoder, text, advance, ready.shrink)
        if settings.truncate_dim is not None:
            rows = rows[:, : settings.truncate_dim]
            rows = F.normalize(rows, dim=-1) if settings.normalize else rows
        yield places, rows


def tokenized(ready: Ready, piece: Piece, max_len: int) -> Ragged:
    """Token ids of a piece.

    Raises:
        ValueError: a text is not Unicode, or has no tokens at all; says which.
    """
    texts = [text.lower() for text in piece.texts] if ready.settings.lower_case else piece.texts
    try:
        found = tokens.tokenize(ready.encoder.tokenizer, texts, max_len)
    except (TypeError, UnicodeError):
        for place, text in zip(piece.places, texts, strict=True):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"sentences[{place}] has half a surrogate pair, which is no letter: {text[:40]!r}") from None
        raise
    empty = (found.lengths == 0).nonzero()
    if len(empty):
        raise ValueError(f"sentences[{piece.places[int(empty[0])]}] has no tokens: leave it out")
    return found


def share(
    ready: Ready, workers: Sequence[crew.Worker], plan: Plan, pieces: Pieces, found: Tensor, advance: Callable[[int], None]
) -> None:
    """Embeds all pieces, in this process and in others, into `found` [N, D].

    Raises:
        ValueError: a text or the memory does not do, or an embedding is not finite.
        RuntimeError: a worker ended.
    """
    failures: list[Exception] = []
    telling = threading.Lock()

    def tell(count: int) -> None:
        with telling:
            advance(count)

    def drive(worker: crew.Worker) -> None:
        try:
            for places, rows in answers(worker, plan, pieces):
                put(found, places, torch.from_numpy(rows), ready.settings.precision)
                tell(len(places))
        except Exception as error:  # told by the main thread
            failures.append(error)
            pieces.stopped = True

    threads = [threading.Thread(target=drive, args=(worker,), daemon=True, name=worker.name) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for places, rows in embedded(ready, pieces, plan, tell):
            put(found, places, rows, ready.settings.precision)
        for thread in threads:
            thread.join()
    finally:
        pieces.stopped = True
    if failures:
        raise failures[0]


def answers(worker: crew.Worker, plan: Plan, pieces: Pieces) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a worker makes of its share; it has two pieces at a time, and tokenises one while it embeds the other."""
    connection, waiting = worker.connection, 0
    try:
        connection.send(plan._replace(texts=[], instruction=None))
        for piece in pieces:
            connection.send(piece)
            waiting += 1
            if waiting == 2:
                yield crew.receive(worker)
                waiting = 1
        connection.send(None)
    except (BrokenPipeError, ConnectionResetError):
        while True:  # says why, after what it had done
            crew.receive(worker)
    for _ in range(waiting):
        yield crew.receive(worker)


def work(connection: Connection, settings: Settings) -> None:
    """What a process of another device does: pieces in, vectors out, until nobody is there any more."""
    ready = load(settings)
    while True:
        plan: Plan = connection.recv()

        def coming() -> Iterator[Piece]:
            while (piece := connection.recv()) is not None:
                yield piece

        for places, rows in embedded(ready, coming(), plan, lambda _: None):
            connection.send((places, rows.cpu().numpy()))


def put(found: Tensor, places: np.ndarray, rows: Tensor, precision: str) -> None:
    """Writes vectors to where their texts stand.

    Raises:
        ValueError: one is not finite.
    """
    finite = rows.isfinite().all(dim=1)
    if not bool(finite.all()):
        place = places[int((~finite).nonzero()[0])]
        hint = ": set use_fp16=False, or use_bf16=True" if precision == "fp16" else ""
        raise ValueError(f"the embedding of sentences[{place}] is not finite{hint}")
    found[torch.from_numpy(places).to(found.device)] = rows.to(found.device)


def share_of_threads(devices: Sequence[str]) -> int:
    """Threads of each process where several compute on this CPU."""
    return max(1, torch.get_num_threads() // max(1, sum(torch.device(each).type == "cpu" for each in devices)))


@contextlib.contextmanager
def threads_for(devices: Sequence[str]) -> Iterator[None]:
    """Within, this process takes its share of the CPU's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(share_of_threads(devices))
    try:
        yield
    finally:
        torch.set_num_threads(before)
