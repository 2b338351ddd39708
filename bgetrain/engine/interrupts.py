"""Signals that ask a run to stop: the first is heeded, the second ends the process at once.

Python runs a signal's handler between two of its own steps, so not while the main thread is in a long backward pass or
waits in a collective. A thread therefore listens to the descriptor that Python writes to at the signal itself.
"""

import contextlib
import ctypes
import functools
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bgetrain.cluster import srun
from bgetrain.cluster.local import launched
from bgetrain.cluster.signals import SAME_SECONDS, SIGNALS

DEAF_SECONDS = 5.0  # until a main thread that has not even noticed a signal is given up
LAUNCHED_SECONDS = 1.0  # SLURM signals every process of a job: a rank then hears once directly and once by its launcher


@contextlib.contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Sets an event on the first of SIGINT, SIGTERM and SIGUSR1; the second ends this process at once, as it would by default."""
    event = threading.Event()
    with heard(lambda number, frame: event.set(), Second()):
        yield event


@contextlib.contextmanager
def heeded(leave: Callable[[], None]) -> Iterator[None]:
    """Raises KeyboardInterrupt in the main thread on the first signal; the second ends this process at once.

    Args:
        leave: called in a thread, and to end the process, where the main thread does not come back to Python.
    """
    second = Second()
    noticed = threading.Event()

    def interrupt(number: int, frame: Any) -> None:
        noticed.set()
        raise KeyboardInterrupt

    def react(number: int | None) -> None:
        if number is not None and signal.getsignal(number) is not interrupt:
            return  # a launcher has taken over, which passes signals on
        second(number)
        if second.first and not noticed.is_set() and time.monotonic() - second.first[1] > DEAF_SECONDS:
            leave()

    with heard(interrupt, react):
        yield


class Second:
    """Ends the process at the second signal; called with each one as it comes, and with None in between.

    Not where srun has started it: SLURM asks before a time limit, again at it and whenever else it wants, which must not cut
    short what is being saved; it kills when its patience is over, and so does srun at a second Ctrl-C.
    """

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def __call__(self, number: int | None) -> None:
        if number is None:
            return
        now = time.monotonic()
        if self.first is None:
            self.first = (number, now)
        elif srun.in_step():
            return
        elif number != self.first[0] or now - self.first[1] > (LAUNCHED_SECONDS if launched() else SAME_SECONDS):
            end_by(number)


@contextlib.contextmanager
def heard(handler: Callable[[int, Any], None], react: Callable[[int | None], None]) -> Iterator[None]:
    """Within, signals call `handler` in the main thread and `react` in another, which also gets None twice a second.

    Elsewhere than in the main thread, which alone may set handlers, nothing is heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    forget_in_forks()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while True:
            ready, _, _ = select.select([reading], [], [], 0.5)
            numbers = os.read(reading, 64) if ready else None
            if numbers == b"":
                return
            for number in numbers or [None]:
                if number in (None, *SIGNALS):
                    react(number)

    listener = threading.Thread(target=listen, daemon=True, name="signals")
    listener.start()
    earlier = {number: signal.signal(number, handler) for number in SIGNALS}
    descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, each in earlier.items():
            signal.signal(number, each)
        os.close(writing)
        listener.join()
        os.close(reading)


@functools.cache
def forget_in_forks() -> None:
    """Keeps a forked process, which shares the descriptor, from telling this one of the signals that end it."""

    def forget() -> None:
        with contextlib.suppress(ValueError):  # forked by another thread than the main one
            signal.set_wakeup_fd(-1)

    os.register_at_fork(after_in_child=forget)


def end_by(number: int) -> None:
    """Ends this process, from any thread, as `number` does where nobody handles it."""
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(number, None)  # SIG_DFL; signal.signal is for the main thread alone
    os.kill(os.getpid(), number)
    time.sleep(1.0)
    os._exit(128 + number)
