"""What the main thread of this rank is at, for a thread that watches whether it still moves."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Wait(NamedTuple):
    """A collective that this rank is in.

    Attributes:
        what: its name.
        since: seconds, of `time.monotonic`.
    """

    what: str
    since: float


class Progress:
    """Attributes: waits: collectives, outermost first; moved_at: seconds, of `time.monotonic`; watched: loops that are on."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.moved_at = time.monotonic()
        self.watched = 0


HERE = Progress()  # of this process: a rank has one main thread


def moved() -> None:
    """Says that the main thread is not stuck: called around whatever may hang, at most some microseconds each."""
    HERE.moved_at = time.monotonic()


def collective(function: F) -> F:
    """Marks a function that waits for other ranks; its entry and its end are progress."""

    @functools.wraps(function)
    def marked(*arguments: Any, **more: Any) -> Any:
        moved()
        wait = Wait(function.__qualname__, HERE.moved_at)
        HERE.waits.append(wait)
        try:
            return function(*arguments, **more)
        finally:
            HERE.waits.remove(wait)
            moved()

    return marked  # type: ignore[return-value]


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within, a main thread that does not move for long is stuck; outside it may be reading data for hours."""
    moved()
    HERE.watched += 1
    try:
        yield
    finally:
        HERE.watched -= 1


def idle_seconds() -> float | None:
    """How long the main thread has not moved; None where nobody asked to watch it."""
    return time.monotonic() - HERE.moved_at if HERE.watched else None


def waiting() -> Wait | None:
    """The outermost collective that the main thread is in."""
    return next(iter(HERE.waits), None)
