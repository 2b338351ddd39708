"""Which process is meant: one that ended, one of another machine or container, one that was given a dead one's number."""

import contextlib
import os
import socket
import time
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

PF_EXITING = 0x4  # of the flags in /proc/PID/stat


class Owner(NamedTuple):
    """Whose a lock is.

    Attributes:
        host: name of the machine.
        pid: of the process.
        started_at: when it took the lock, in words.
        started: when the process began, in ticks since the machine did; None: the system does not tell. With it, a process
            that was given the number of a dead one is not taken for that.
        machine: changes with every start of the machine; "" where the system does not tell: `host` must do.
        space: the processes among which `pid` is a number, a container's; "" where the system does not tell.
    """

    host: str
    pid: int
    started_at: str
    started: int | None
    machine: str
    space: str


def is_alive(owner: Owner) -> bool:
    """Whether a process of this machine runs, is the one meant, and is not about to end."""
    try:
        os.kill(owner.pid, 0)
    except PermissionError:  # another user's
        pass
    except (OSError, OverflowError):
        return False
    facts = stat_of(owner.pid)
    if facts is None:
        return True
    state, flags, started = facts[0], int(facts[6]), int(facts[19])
    return started == (owner.started or started) and state not in "ZX" and not flags & PF_EXITING


def stat_of(pid: int | Literal["self"]) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None where there are none to be seen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf8", "replace").rpartition(")")[2].split()
    except OSError:
        return None


def this_process() -> Owner:
    facts = stat_of("self")
    machine, space = place()
    return Owner(socket.gethostname(), os.getpid(), moment(time.time()), int(facts[19]) if facts else None, machine, space)


@cache
def place() -> tuple[str, str]:
    """What sets this start of this machine, and this container's processes, apart from others of the same name."""
    machine = space = ""
    with contextlib.suppress(OSError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text("utf8").strip()
        space = os.readlink("/proc/self/ns/pid")
    return machine, space


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def words(owner: Owner) -> str:
    return f"process {owner.pid} on {owner.host} since {owner.started_at}"
