"""Ranks that watch each other: one that dies, freezes or is stuck brings the others down within a bound.

Each rank has two threads. One exchanges records with the other ranks on a connection of its own (`board.py`), so that the
main thread may be anywhere for as long as it wants. The other judges by what was read, and ends the process where it must.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import distributed, progress
from bgetrain.cluster import stacks
from bgetrain.cluster.board import Board, Record, State
from bgetrain.cluster.local import GOES_ON, INTERRUPTED, complain, end_here, launched, told
from bgetrain.types import World

CALLS = itertools.count()  # of `beating`, in the same order on every rank
BEATING: list["Pulse"] = []  # of this process: one at a time
BEATS = 20  # in the time that a rank may be silent
LONGEST_PERIOD, SHORTEST_PERIOD = 3.0, 0.1  # seconds between two beats
PATIENCE_SECONDS = 3.0  # for a main thread that may be about to say why by itself
STACKS_SECONDS = 15.0  # for all ranks to have written their stacks; they have within a beat, but for a busy machine
CRASH = 1  # exit status


class Departure(NamedTuple):
    """Why this rank has to leave.

    Attributes:
        status: exit status.
        line: to be said; empty where another has said it.
        patience: seconds that the main thread has to leave by itself.
    """

    status: int
    line: str
    patience: float = 0.0


@contextlib.contextmanager
def beating(world: World, *, heartbeat_seconds: float, timeout_minutes: float, folder: Path) -> Iterator["Pulse | None"]:
    """Watches the other ranks, and is watched by them; None for a rank that is alone.

    Args:
        world: all ranks, each of which calls this.
        heartbeat_seconds: a rank that is silent for longer is given up.
        timeout_minutes: how long a main thread may stand still within `progress.watched`.
        folder: receives `rank_R.txt` where one stands still.
    """
    number = next(CALLS)
    if world.size == 1:
        yield None
        return
    period = min(LONGEST_PERIOD, max(SHORTEST_PERIOD, heartbeat_seconds / BEATS))
    store = distributed.own_connection(max(5.0, heartbeat_seconds))
    board = Board(store, f"pulse/{number}", world.rank, world.size, period)
    pulse = Pulse(board, heartbeat_seconds, 60 * timeout_minutes, folder)
    for work in (board.keep, pulse.judge):
        threading.Thread(target=work, daemon=True, name=f"pulse {work.__name__}").start()
    BEATING.append(pulse)
    try:
        yield pulse
    except BaseException as error:
        pulse.leave("left", INTERRUPTED if isinstance(error, KeyboardInterrupt) else CRASH)
        raise
    finally:
        BEATING.remove(pulse)
        pulse.leave("ended", 0)


def say_left(status: int) -> None:
    """Tells the others, from another thread than the main one, that this rank leaves alone."""
    for pulse in BEATING:
        pulse.leave("left", status)


class Pulse:
    """One rank's view of all; `explain` and `leave` are the main thread's, the rest is the judging thread's.

    Args:
        board: of all ranks.
        silence: seconds after which a rank is given up.
        limit: seconds that the main thread may stand still.
        folder: for stacks.
    """

    def __init__(self, board: Board, silence: float, limit: float, folder: Path) -> None:
        self.board, self.silence, self.limit, self.folder = board, silence, limit, folder
        self.judging, self.dumping = True, False
        # a peer that works beats several times in this; used where something is known to be wrong
        self.moment = 2 * board.period + 0.5

    def judge(self) -> None:
        """The thread: ends this process where it has to."""
        last = time.monotonic()
        while not self.board.closed:
            time.sleep(self.board.period)
            now = time.monotonic()
            if now - last > self.silence / 2:  # this process was frozen itself, and has heard of nobody meanwhile
                self.board.forgive()
            last = now
            found = self.verdict() if self.judging else None
            if found is not None:
                self.depart(found)

    def verdict(self) -> Departure | None:
        """What the others' records and this rank's own standing ask for."""
        idle = progress.idle_seconds()
        followed = self.followed()
        if followed is None and ("stuck" in self.states() or (idle is not None and idle > self.limit)):
            return self.stuck()
        return followed or self.missing(self.silence)

    def states(self) -> list[State]:
        return [each.state for each in list(self.board.others.values())]

    def followed(self) -> Departure | None:
        """Another rank has left alone: this one says what it is to say, or else whose message tells why.

        The launcher makes the status of the whole of the other's, and takes this one for a rank that followed.
        """
        for rank, each in list(self.board.others.items()):
            if each.state == "left":
                own_words = f"{self.board.name(rank)} has ended with an error of its own, which it says{GOES_ON}"
                line = each.line or ("" if each.status == INTERRUPTED else own_words)
                self.say("left", each.status, line)
                return Departure(INTERRUPTED if launched() else each.status, line, PATIENCE_SECONDS)
        return None

    def missing(self, silence: float) -> Departure | None:
        """The ranks that are gone or have been silent for too long.

        The first rank keeps the meeting place: without it nothing is known of the others.
        """
        board, now = self.board, time.monotonic()
        keeper = f"{board.name(0)}, which keeps the ranks' meeting place,"
        if board.broken is not None:
            late = now - board.broken > min(silence, PATIENCE_SECONDS)
            return Departure(CRASH, f"{keeper} is gone{GOES_ON}") if late else None
        # a moment's silence is no figure to state: what is known then is that contact was lost
        how = f"silent for over {silence:g} s, dead or frozen" if silence == self.silence else "contact is lost, dead or frozen"
        if now - board.reached > silence:
            return Departure(CRASH, f"{keeper[:-1]}: {how}{GOES_ON}")
        silent = [rank for rank in board.heard if self.is_running(rank) and board.reached - board.heard[rank] > silence]
        if not silent:
            return None
        names = "; ".join(map(board.name, silent))
        return Departure(CRASH, f"{names}: {how}{GOES_ON}")

    def is_running(self, rank: int) -> bool:
        """Whether a rank is to be heard of."""
        return rank not in self.board.others or self.board.others[rank].state in ("running", "stuck")

    def stuck(self) -> Departure:
        """Writes this rank's stacks, waits for the others to have written theirs, and says where all are."""
        self.dumping = True
        board, doing = self.board, stacks.standing()
        stacks.dump(self.folder / f"rank_{board.rank}.txt", board.name(board.rank))
        board.publish(Record(0, "stuck", CRASH, "", doing))
        self.until(lambda: self.states().count("stuck") == len(board.heard), STACKS_SECONDS)
        known = {rank: each.doing for rank, each in board.others.items() if each.state == "stuck"} | {board.rank: doing}
        by_doing: dict[str, list[str]] = {}
        for rank in sorted([*board.heard, board.rank]):
            by_doing.setdefault(known.get(rank, "without an answer"), []).append(str(rank))
        words = "; ".join(f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks)} {doing}" for doing, ranks in by_doing.items())
        line = f"no progress for {self.limit / 60:g} min: {words}. Stacks of every rank are in {self.folder}{GOES_ON}"
        return Departure(CRASH, line if launched() or board.rank == min(known) else "")

    def depart(self, why: Departure) -> None:
        """Ends this process, unless its main thread is leaving by itself."""
        self.until(lambda: not self.judging, why.patience)
        if not self.judging:
            return
        self.judging = False
        self.say("left", why.status, why.line)
        if why.line and not told():
            complain(f"bgetrain: {why.line}")
        self.linger()
        end_here(why.status)

    def explain(self, error: BaseException) -> Departure | None:
        """Why contact to another rank was lost, as its record, or its silence, tells after a moment.

        Returns:
            None where nothing is known but the error itself.
        """
        if self.dumping:  # the judging thread is at it, and ends this process
            time.sleep(2 * STACKS_SECONDS)
        self.judging = False
        found = self.until(
            lambda: Departure(INTERRUPTED, "") if launched() and told() else self.followed() or self.missing(self.moment),
            2 * self.moment,
        )
        if found is None and distributed.is_timeout(error):
            found = self.stuck()
        if found is not None:
            self.say("left", found.status, found.line)
        return found

    def leave(self, state: State, status: int) -> None:
        """The main thread's last word, unless it has been spoken; the first rank stays until the others have had theirs."""
        self.judging = False
        self.say(state, status, "")
        self.linger()
        self.board.close()

    def say(self, state: State, status: int, line: str) -> None:
        if self.board.own.state == "running":
            self.board.publish(Record(0, state, status, line))

    def linger(self) -> None:
        """The first rank keeps what the others read."""
        if self.board.rank == 0 and not self.board.closed:
            self.until(lambda: all(map(self.is_over, self.board.heard)), PATIENCE_SECONDS + self.board.period)

    def is_over(self, rank: int) -> bool:
        """Whether a rank needs the meeting place no longer, or is past needing it."""
        board = self.board
        final = rank in board.others and board.others[rank].state != "running"
        return final or board.broken is not None or time.monotonic() - board.heard[rank] > self.moment

    def until(self, holds: Callable[[], Any], seconds: float) -> Any:
        """Asks anew, with fresh records, until something holds or time is up; returns the last answer."""
        deadline = time.monotonic() + seconds
        while not (found := holds()) and time.monotonic() < deadline:
            self.board.due.set()
            time.sleep(0.05)
        return found
