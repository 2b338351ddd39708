"""Batches made ahead of their use, in a thread or in processes; the same ones, in the same order."""

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from bgetrain.cluster.signals import SIGNALS

DEPTH = 2  # batches ready: of the thread, or of each process


@contextlib.contextmanager
def ahead(batch_at: Callable[[int], Any], steps: range, num_workers: int) -> Iterator[Iterator[Any]]:
    """Makes the batches of `steps`, ahead of their use.

    Args:
        batch_at: this rank's batch of a step; for processes it must be picklable.
        steps: in their order.
        num_workers: processes; 0: a thread of this one.

    Raises:
        Exception: what `batch_at` raises, when its batch is asked for.
    """
    if not num_workers or not steps:
        with in_thread(batch_at, steps) as batches:
            yield batches
        return
    loader: DataLoader = DataLoader(
        Steps(batch_at, steps),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=DEPTH,
        worker_init_fn=leave_signals,
        # forked from a server without the threads and sockets of this process
        multiprocessing_context="forkserver",
    )
    made: Any = iter(loader)
    try:
        yield (given(each) for each in made)
    finally:
        made._shutdown_workers()  # what its __del__ does: now, not when the last reference to it goes


class Steps(Dataset):
    """Step number -> batch, as a data set of torch."""

    def __init__(self, batch_at: Callable[[int], Any], steps: range) -> None:
        self.batch_at, self.steps = batch_at, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, place: int) -> Any:
        try:
            return self.batch_at(self.steps[place])
        except ValueError as error:  # torch would wrap it in a traceback of several lines
            return error


def given(batch: Any) -> Any:
    if isinstance(batch, ValueError):
        raise batch
    return batch


def leave_signals(_: int) -> None:
    """Lets the rank decide: Ctrl-C reaches its processes too, and the step in hand still needs them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def in_thread(batch_at: Callable[[int], Any], steps: range) -> Iterator[Iterator[Any]]:
    """As `ahead`, in a thread."""
    ready: queue.Queue = queue.Queue(maxsize=DEPTH)
    done = threading.Event()

    def offer(item: Any) -> None:
        while not done.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        for step in steps:
            if done.is_set():
                return
            try:
                offer(batch_at(step))
            except Exception as error:  # handed to the training thread, which raises it
                return offer(error)

    def take() -> Iterator[Any]:
        while True:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item

    maker = threading.Thread(target=make, daemon=True, name="batches")
    maker.start()
    try:
        yield take()
    finally:
        done.set()
        maker.join()
