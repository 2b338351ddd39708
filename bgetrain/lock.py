"""`.lock` of an output folder: held by rank 0 as long as a run lasts, so that a second run in the folder is refused.

The kernel's lock on the file decides wherever it reaches: it dies with its holder, and containers of one machine share it.
The file says in JSON whose it is. Its mtime, which the holder renews, speaks where the kernel's lock cannot: between machines
whose file system does not share locks, and on file systems that have none.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bgetrain import output
from bgetrain.cluster.local import BEFORE_END, USER_ERROR, complain
from bgetrain.owner import Owner, is_alive, moment, place, this_process, words

NAME = ".lock"
BEAT_SECONDS = 10.0  # between two signs of life
STALE_SECONDS = 60.0  # without one: the holder is dead, though its machine is another
WAIT_SECONDS = 90.0  # for a holder on another machine, which may just have died
GRACE_SECONDS = 3.0  # for a holder that is about to die: the kernel takes seconds to clear a large process away
SETTLE_SECONDS = 1.0  # without the kernel's lock: in which another may write its name over ours
POLL_SECONDS = 0.1
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems without locks answer
DESCRIPTORS: set[int] = set()  # of locks that this process holds
Kernel = Literal["free", "busy", "none"]


@contextlib.contextmanager
def held(output_dir: str) -> Iterator[None]:
    """Holds the folder's lock; rank 0 alone calls it, before anything is written there.

    Raises:
        ValueError: another run holds it, or the folder cannot be written.
    """
    folder = Path(output_dir)
    output.check_writable(folder)
    name = json.dumps(this_process()._asdict()).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = taken(folder, name)
    except OSError as error:
        raise ValueError(f"output_dir={folder}: cannot write here: {error.strerror}") from error
    DESCRIPTORS.add(descriptor)
    close_in_children()
    owner, ended = os.getpid(), threading.Event()
    beats = threading.Thread(target=beat, args=(folder, name, ended), daemon=True, name="lock")
    beats.start()

    def forget() -> None:
        if os.getpid() == owner:
            with contextlib.suppress(OSError):
                if (folder / NAME).read_bytes() == name:
                    (folder / NAME).unlink()

    BEFORE_END.append(forget)
    try:
        yield
    finally:
        BEFORE_END.remove(forget)
        if os.getpid() == owner:
            ended.set()
            beats.join()
            forget()
            DESCRIPTORS.discard(descriptor)
            os.close(descriptor)


def check(output_dir: str) -> None:
    """Looks whether the folder is free, and leaves it as it is.

    Raises:
        ValueError: another run holds it.
    """
    folder, began = Path(output_dir), time.monotonic()
    while True:
        try:
            descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # there is none, or `held` will say why it cannot be had
            return
        try:
            kernel = ask(descriptor, fcntl.LOCK_SH)
            owner = read(descriptor)
            patience = obstacle(folder, descriptor, owner, kernel)
        finally:
            os.close(descriptor)
        if patience is None:
            return
        wait(folder, owner, patience, began)


def holder(output_dir: str) -> Owner | None:
    """Who holds the folder, as far as can be told without waiting; None: nobody."""
    folder = Path(output_dir)
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        owner = read(descriptor)
        patience = obstacle(folder, descriptor, owner, ask(descriptor, fcntl.LOCK_SH))
        return owner if patience in (0.0, WAIT_SECONDS) else None
    finally:
        os.close(descriptor)


def taken(folder: Path, name: bytes) -> int:
    """Waits for the lock as long as that makes sense, and takes it; returns its descriptor.

    Raises:
        ValueError: another run holds it.
        OSError: the file cannot be written.
    """
    path, began = folder / NAME, time.monotonic()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            kernel = ask(descriptor, fcntl.LOCK_EX)
            owner = read(descriptor)
            patience = obstacle(folder, descriptor, owner, kernel)
            if patience is None and is_at(path, descriptor):  # else its holder has just ended, and has removed it
                if owner:
                    tell(f"output_dir={folder}: {words(owner)} did not end by itself; its lock is taken over")
                if kernel == "busy":  # of a machine that is gone; the server has not noticed
                    path.unlink()
                elif sign(path, descriptor, name, kernel):
                    kept, descriptor = descriptor, -1
                    return kept
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if patience is not None:
            wait(folder, owner, patience, began)


def ask(descriptor: int, kind: int) -> Kernel:
    """Tries to get the kernel's lock, LOCK_EX or LOCK_SH."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return "busy"
        if error.errno in NO_LOCKS:
            return "none"
        raise
    return "free"


def obstacle(folder: Path, descriptor: int, owner: Owner | None, kernel: Kernel) -> float | None:
    """For how many seconds in all it makes sense to wait for the holder of a lock; None: nobody holds it."""
    if owner is None:  # its holder has not yet written its name, or there is none
        return GRACE_SECONDS if kernel == "busy" else None
    machine, space = place()
    if owner.machine == machine if owner.machine else owner.host == socket.gethostname():
        if kernel == "free":
            return None
        if owner.space in ("", space):
            return 0.0 if is_alive(owner) else None if kernel == "none" else GRACE_SECONDS
        if kernel == "busy":
            return GRACE_SECONDS
    return WAIT_SECONDS if silence(folder, descriptor) < STALE_SECONDS else None


def wait(folder: Path, owner: Owner | None, patience: float, began: float) -> None:
    """Waits a moment for the holder of a lock, or raises ValueError where that has lasted `patience` seconds."""
    whose = words(owner) if owner else "another process"
    passed = time.monotonic() - began
    if passed >= patience:
        raise ValueError(f"output_dir={folder} is in use by {whose}: wait for it or stop it, or choose another output_dir")
    if patience > GRACE_SECONDS and passed < POLL_SECONDS:
        tell(f"output_dir={folder} is in use by {whose}: waiting up to {WAIT_SECONDS:.0f} s, in case that machine has just died")
    time.sleep(POLL_SECONDS)


def sign(path: Path, descriptor: int, name: bytes, kernel: Kernel) -> bool:
    """Writes our name into the file; False where another was faster."""
    if kernel == "free":
        os.pwrite(descriptor, name, 0)
        os.ftruncate(descriptor, len(name))
        return True
    output.write(path, name.decode())
    time.sleep(SETTLE_SECONDS)  # of two that found the file free at once, the second to write has it
    return path.read_bytes() == name


def beat(folder: Path, name: bytes, ended: threading.Event) -> None:
    """Gives signs of life until `ended`; ends the process where another has taken the folder over."""
    path = folder / NAME
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a disk that is away for a while: a sign is left out
            found = path.read_bytes()
            if found and found != name:
                complain(f"bgetrain: output_dir={folder} was taken over by another run, as this one had stood still: it ends")
                os._exit(USER_ERROR)  # without another word into a folder that is no longer its own
            os.utime(path)  # without a time: a network file system then uses its own clock


def silence(folder: Path, descriptor: int) -> float:
    """Seconds since the last sign of life, by the file system's own clock: that of this machine may be another's hours off."""
    probe = folder / f"{NAME}.{os.getpid()}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    return now - os.fstat(descriptor).st_mtime  # of a file just opened: a path's mtime may be an old one over NFS


def read(descriptor: int) -> Owner | None:
    """Whose name stands in a lock; None where there is none, or not yet a whole one."""
    try:
        facts: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        when = facts["started_at"]
        when = moment(when) if isinstance(when, int | float) else str(when)
        started = facts.get("started")
        rest = (None if started is None else int(started), str(facts.get("machine", "")), str(facts.get("space", "")))
        return Owner(str(facts["host"]), int(facts["pid"]), when, *rest)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@cache
def close_in_children() -> None:
    """Has forks let go of the lock: a worker that outlives this process would else hold it."""

    def close() -> None:
        while DESCRIPTORS:
            os.close(DESCRIPTORS.pop())

    os.register_at_fork(after_in_child=close)
