"""Processes of this machine that work for this one and never outlive it by more than the piece they are at.

They are started as new Pythons, which do not import the user's script again: it needs no `if __name__ == "__main__"`.
"""

import importlib
import subprocess
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

PARENT = str(Path(__file__).parents[2])  # of the package
CODE = "import sys; sys.path.insert(0, {path!r}); from bgetrain.cluster import crew; crew.serve({target!r}, {end})"


class Worker(NamedTuple):
    """A process and the way to talk to it.

    Attributes:
        name: for messages.
        process: the process.
        connection: what is sent and received is pickled.
    """

    name: str
    process: subprocess.Popen[bytes]
    connection: Connection


class Failure(NamedTuple):
    """What a worker sends before it ends early.

    Attributes:
        mendable: by the user.
        message: one line.
    """

    mendable: bool
    message: str


def start(name: str, target: str, job: Any) -> Worker:
    """Starts a process that calls `target(connection, job)` and returns at once.

    Args:
        name: for messages.
        target: `MODULE:FUNCTION`.
        job: what the function is told; it is pickled.
    """
    ours, theirs = Pipe()
    code = CODE.format(path=PARENT, target=target, end=theirs.fileno())
    # a session of its own: Ctrl-C reaches this process alone, which ends the others
    process = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
    )
    theirs.close()
    ours.send(job)
    return Worker(name, process, ours)


def serve(target: str, end: int) -> None:
    """What runs in a worker."""
    connection = Connection(end)
    try:
        job = connection.recv()
        module, _, name = target.partition(":")
        getattr(importlib.import_module(module), name)(connection, job)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the process that started this one is gone
        return
    except ValueError as error:
        connection.send(Failure(True, str(error)))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        connection.send(Failure(False, f"{reason} ({Path(where.filename).name}:{where.lineno})"))


def receive(worker: Worker) -> Any:
    """The next that a worker sends.

    Raises:
        ValueError: it refused its work.
        RuntimeError: it crashed, or was ended from outside.
    """
    try:
        found = worker.connection.recv()
    except (EOFError, OSError):
        status = worker.process.wait()
        raise RuntimeError(
            f"the process of {worker.name} ended with status {status}; if memory ran out, take fewer processes or smaller passes"
        ) from None
    if isinstance(found, Failure):
        if found.mendable:
            raise ValueError(found.message)
        raise RuntimeError(f"the process of {worker.name} crashed: {found.message}")
    return found


def stop(workers: Sequence[Worker]) -> None:
    """Ends processes at once: they hold nothing that must be saved."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        worker.connection.close()
