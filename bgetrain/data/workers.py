"""A function over parts of the data in processes of their own, which never outlive this one."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
NEWS = 500  # pieces between two messages of a worker


def in_parallel(
    work: Callable[[Any, int, int, Callable[[int], None]], T], job: Any, num_workers: int, advance: Callable[[int], None]
) -> list[T]:
    """Calls `work(job, part, parts, advance)` for each part; one part runs in this process.

    Args:
        work: a function at the top of a module.
        job: what all are told; it is pickled.
        num_workers: parts, > 0.
        advance: told here how many more pieces are done.

    Returns:
        What each part returned, in order.

    Raises:
        ValueError: the first that a worker raised.
        RuntimeError: a worker crashed or was ended from outside.
    """
    if num_workers == 1:
        return [work(job, 0, 1, advance)]
    # a server from which workers are forked, with the imports done once, holds no thread of ours
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if hasattr(context, "set_forkserver_preload"):
        context.set_forkserver_preload([work.__module__])
    pipes = [context.Pipe(duplex=False) for _ in range(num_workers)]
    workers = [
        context.Process(target=serve, args=(work, job, part, num_workers, end), daemon=True)
        for part, (_, end) in enumerate(pipes)
    ]
    try:
        for worker, (_, end) in zip(workers, pipes, strict=True):
            worker.start()
            end.close()
        return collect([pipe[0] for pipe in pipes], workers, advance)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()


def collect(ends: list[Connection], workers: list[Any], advance: Callable[[int], None]) -> list[Any]:
    results: dict[Connection, Any] = {}
    while len(results) < len(ends):
        for end in wait([end for end in ends if end not in results]):
            assert isinstance(end, Connection)
            try:
                sort, value = end.recv()
            except EOFError:
                worker = workers[ends.index(end)]
                worker.join()
                raise RuntimeError(
                    f"a worker ended with status {worker.exitcode}; if memory ran out, use fewer of them"
                ) from None
            if sort == "news":
                advance(value)
            elif sort == "refused":
                raise ValueError(value)
            elif sort == "crashed":
                raise RuntimeError(f"a worker crashed:\n{value}")
            else:
                results[end] = value
    return [results[end] for end in ends]


def serve(work: Callable[..., Any], job: Any, part: int, parts: int, end: Connection) -> None:
    """What runs in a worker."""
    for number in (signal.SIGINT, signal.SIGUSR1):  # they reach all processes; the first one ends the others
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=outlive_nobody, daemon=True).start()
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if done >= NEWS:
            end.send(("news", done))
            done = 0

    try:
        result = work(job, part, parts, advance)
        end.send(("news", done))
        end.send(("result", result))
    except Exception as error:
        ours = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(str(Path(__file__).parent.parent))
        mendable = isinstance(error, ValueError) and ours  # what other packages raise is a crash
        end.send(("refused", str(error)) if mendable else ("crashed", traceback.format_exc()))


def outlive_nobody() -> None:
    """Ends this worker when the process that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
