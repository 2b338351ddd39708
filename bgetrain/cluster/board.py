"""What each rank publishes about itself, at the ranks' meeting place."""

import json
import os
import socket
import threading
import time
from typing import Any, Literal, NamedTuple

State = Literal["running", "ended", "left", "stuck"]


class Record(NamedTuple):
    """What a rank publishes.

    Attributes:
        beat: counts up.
        state: running; ended: as all others do; left: alone, the others are to follow; stuck: its stacks are written.
        status: exit status of one that left.
        line: what the others are to say about it.
        doing: of one that is stuck.
    """

    beat: int
    state: State
    status: int = 0
    line: str = ""
    doing: str = ""


class Board:
    """Publishes the record of this rank and reads those of the others, in a thread that alone uses the connection.

    Whoever calls a meeting place whose keeper is frozen hangs; what is read here stands in attributes for other threads.

    Args:
        store: a connection of torch's for one thread.
        prefix: of the keys.
        rank: this one.
        size: ranks in all.
        period: seconds between two beats.
    """

    def __init__(self, store: Any, prefix: str, rank: int, size: int, period: float) -> None:
        self.store, self.prefix, self.rank, self.period = store, prefix, rank, period
        self.place = f"{socket.gethostname()}, pid {os.getpid()}"
        self.own = Record(0, "running")
        self.others: dict[int, Record] = {}
        self.places: dict[int, str] = {}
        self.heard = {other: 0.0 for other in range(size) if other != rank}  # when a record was last seen to change
        self.reached = 0.0  # when the meeting place last answered
        self.broken: float | None = None  # since when it refuses
        self.closed = False
        self.published, self.due, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.forgive()

    def forgive(self) -> None:
        """Begins to count silence anew."""
        self.reached = time.monotonic()
        self.heard = dict.fromkeys(self.heard, self.reached)

    def keep(self) -> None:
        """The thread: exchanges records once in a period, or when it is due, until `close`."""
        try:
            self.store.set(f"{self.prefix}/place/{self.rank}", self.place)
            while not self.closed:
                self.exchange()
                self.due.wait(self.period)
                self.due.clear()
        except RuntimeError:  # what torch's stores raise; a connection once lost does not come back
            self.broken = time.monotonic()

    def exchange(self) -> None:
        """One round: this rank's record goes out, those of the others come in; two requests, however many ranks there are."""
        began, own = time.monotonic(), self.own
        self.store.set(self.key(self.rank), json.dumps(own))
        if own.state != "running":
            self.published.set()
        with self.lock:
            if self.own is own:
                self.own = own._replace(beat=own.beat + 1)
        others = list(self.heard)
        if len(self.places) < len(others):  # while they begin
            others = [rank for rank in others if self.store.check([self.key(rank), f"{self.prefix}/place/{rank}"])]
            found = self.store.multi_get([f"{self.prefix}/place/{rank}" for rank in others]) if others else []
            self.places = {rank: each.decode() for rank, each in zip(others, found, strict=True)}
        found = self.store.multi_get([self.key(rank) for rank in others]) if others else []
        for rank, each in zip(others, found, strict=True):
            record = Record(*json.loads(each))
            if record != self.others.get(rank):
                self.others[rank], self.heard[rank] = record, began
        self.reached = time.monotonic()

    def key(self, rank: int) -> str:
        return f"{self.prefix}/{rank}"

    def publish(self, record: Record) -> None:
        """Sends a last word, and waits a moment for it to be gone."""
        self.published.clear()
        with self.lock:
            self.own = record
        self.due.set()
        if self.broken is None:
            self.published.wait(1.0)

    def name(self, rank: int) -> str:
        """Rank, host and process."""
        return f"rank {rank} ({self.place if rank == self.rank else self.places.get(rank, 'has not begun')})"

    def close(self) -> None:
        """Ends the thread."""
        self.closed = True
        self.due.set()
