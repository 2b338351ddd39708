"""Signals that ask a run to stop, as a launcher counts them."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, schedulers, SLURM before its time limit
SAME_SECONDS = 0.3  # signals so close are one: `timeout` signals its child and then the group of it


@contextlib.contextmanager
def counted(act: Callable[[int, int], None], *, first_only: bool) -> Iterator[Callable[[], int]]:
    """Calls `act(number, count)` at each of the signals, in the main thread.

    Args:
        act: gets the signal's number, and the how-manieth it is.
        first_only: all but the first are left unheard.

    Yields:
        What tells how many there were.
    """
    count, heard_at = 0, float("-inf")

    def hear(number: int, _frame: object) -> None:
        nonlocal count, heard_at
        if time.monotonic() - heard_at < SAME_SECONDS or (count and first_only):
            return
        count, heard_at = count + 1, time.monotonic()
        act(number, count)

    earlier = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield lambda: count
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
