"""The wish to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Sets an event on the first SIGINT or SIGTERM; the second ends this process at once."""
    event = threading.Event()

    def ask(number: int, _frame: object) -> None:
        if event.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    earlier = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
