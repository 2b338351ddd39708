"""Ranks on this machine: joins those that torchrun started, else starts one per device."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bgetrain.cluster import srun
from bgetrain.cluster.host import claimed_port, count_devices, free_port, keep_memory
from bgetrain.cluster.place import Command, Place
from bgetrain.cluster.signals import SIGNALS, counted

if TYPE_CHECKING:
    from bgetrain.types import PositiveFloat, PositiveInt

USER_ERROR = 2  # exit status: something to mend, said in one line
INTERRUPTED = 75  # exit status: saved, run the same command again to go on
GRACE_SECONDS = 3.0  # between asking the ranks to end and ending them
FIRST_RANK_SECONDS = 60.0  # the first rank may still close a logger when the others have ended
GOES_ON = ": the same command goes on from what was saved"
BEFORE_END: list[Callable[[], None]] = []  # called before this process ends itself from another thread than the main one
LIFELINE = "BGETRAIN_LIFELINE"  # descriptor that closes when the launcher dies
COMPLAINTS = "BGETRAIN_COMPLAINTS"  # folder where ranks leave their one-line errors, so that each is said once


def launch(
    run: Callable[[Place], int],
    command: Command,
    *,
    timeout_minutes: "PositiveFloat",
    heartbeat_seconds: "PositiveFloat",
    port: "PositiveInt | None",
) -> int:
    """Calls `run` on every rank.

    Args:
        run: what one rank does; returns its exit status.
        command: what is run.
        timeout_minutes: how long a collective may wait for the other ranks.
        heartbeat_seconds: how long a rank may be silent before the others leave.
        port: TCP port where the ranks meet; None: a free one.

    Returns:
        The exit status of the whole: 2 where any rank has it, else 1 where any failed otherwise, else 75 where any was
        interrupted, else 0.

    Raises:
        ValueError: `port` is in use.
    """
    if command.dry_run:
        say(shlex.join(["bgetrain", *command.arguments]))
        return 0
    return on_ranks(run, command.line, command.num_processes, timeout_minutes, heartbeat_seconds, port)


def on_ranks(
    run: Callable[[Place], int],
    line: Sequence[str],
    count: int | None,
    timeout_minutes: float,
    heartbeat_seconds: float,
    port: int | None,
) -> int:
    """As `launch`, for the command `line` on `count` ranks; None: one per device."""
    prepare()
    place = joined(timeout_minutes, heartbeat_seconds, port)
    if place:
        return run(place)
    count = count or count_devices()
    if count == 1:
        return run(alone(timeout_minutes, heartbeat_seconds))
    return start_ranks(list(line), count, free_port() if port is None else claimed_port(port))


def prepare() -> None:
    """Sets what libraries read when they are loaded, torch among them."""
    # threads that spin while they wait cost up to 5x where anything else runs on the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else pages of C++ frames tell that a rank is gone, before our line
    keep_memory()


def joined(timeout_minutes: float, heartbeat_seconds: float, port: int | None = None) -> Place | None:
    """This process among the ranks that a launcher, torchrun or srun has started; None where none has.

    Raises:
        ValueError: `port`, where ranks of srun are to meet, is in use.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    watch_lifeline()
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if srun.is_rank():
        local_rank = srun.local_rank()
        if port:
            srun.DESKS[0].move(port)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    return Place(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=local_rank,
        local_size=local_size,
        timeout_minutes=timeout_minutes,
        heartbeat_seconds=heartbeat_seconds,
        threads=srun.threads(local_size),
        has_own_gpus=srun.is_rank() and srun.has_own_gpus(),
        meet=srun.meet if srun.is_rank() else None,
    )


def alone(timeout_minutes: float, heartbeat_seconds: float) -> Place:
    """The only rank."""
    os.environ.setdefault("LOCAL_RANK", "0")  # deepspeed insists on it
    return Place(0, 1, 0, 1, timeout_minutes, heartbeat_seconds, srun.threads(1))


def leave(status: int) -> NoReturn:
    """Ends this process; a rank of several at once, since all is written by then.

    Taken down in order, a thread of torch's now and then outlives its owner and aborts the process, and with it the run.
    """
    srun.close(status)
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    for number in SIGNALS:  # all is done: an interrupt would only show where Python happened to be
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def end_here(status: int) -> NoReturn:
    """Ends this process from any thread, wherever the main one is."""
    for last in BEFORE_END:
        last()
    srun.close(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_first() -> bool:
    """Whether this process is rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def start_ranks(command: list[str], count: int, port: int) -> int:
    """Starts `count` processes, passes signals on to them, and ends all when one fails."""
    lifeline, held = os.pipe()
    with tempfile.TemporaryDirectory(prefix="bgetrain-") as complaints:
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            LIFELINE: str(lifeline),
            COMPLAINTS: complaints,
        }
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                pass_fds=[lifeline],
                start_new_session=True,  # a Ctrl-C reaches the ranks once, from here, not also from the terminal
                stdin=subprocess.DEVNULL,
            )
            for rank in range(count)
        ]
        os.close(lifeline)
        try:
            status = wait(ranks, Path(complaints))
        finally:
            end(ranks)
            os.close(held)
        for line in dict.fromkeys(path.read_text("utf8") for path in sorted(Path(complaints).iterdir())):
            print(line, file=sys.stderr)
    return status


def wait(ranks: list[subprocess.Popen], complaints: Path) -> int:
    """Waits for all ranks; the first interrupt is passed on, the second ends them, and so does the failure of one."""

    def pass_on(number: int, count: int) -> None:
        for rank in ranks:
            if rank.poll() is None and count == 1:
                rank.send_signal(number)
            elif count > 1:
                kill(rank)

    alone_since: float | None = None
    with counted(pass_on, first_only=srun.in_step()) as interrupts:  # SLURM asks several times
        while True:
            statuses = [rank.poll() for rank in ranks]
            if interrupts():  # one that was not yet listening died of what was passed on
                statuses = [INTERRUPTED if -(status or 0) in SIGNALS else status for status in statuses]
            if any(status not in (None, 0, INTERRUPTED) for status in statuses) and interrupts() < 2:
                time.sleep(GRACE_SECONDS / 3)  # the others may be about to say the same, or more
                return failure(ranks, complaints)
            if None not in statuses or interrupts() > 1:
                return INTERRUPTED if any(statuses) or interrupts() > 1 else 0
            if INTERRUPTED in statuses:  # the others may wait for one that is gone, deaf to signals
                alone_since = alone_since or time.monotonic()
                patience = GRACE_SECONDS if statuses[0] is not None else FIRST_RANK_SECONDS
                if time.monotonic() - alone_since > patience:
                    return INTERRUPTED
            time.sleep(0.05)


def failure(ranks: list[subprocess.Popen], complaints: Path) -> int:
    """The exit status of a run of which a rank has failed; leaves word of one that could not speak for itself."""
    statuses = [rank.poll() for rank in ranks]
    for number, (rank, status) in enumerate(zip(ranks, statuses, strict=True)):
        if status is not None and status < 0:
            whose = f"rank {number} ({socket.gethostname()}, pid {rank.pid})"
            line = f"bgetrain: {whose} was ended by {signal.Signals(-status).name}{GOES_ON}"
            (complaints / "launcher").write_text(line, "utf8")
    # a rank that lost another crashes for it: what the user can mend comes first
    return USER_ERROR if USER_ERROR in statuses else 1


def end(ranks: list[subprocess.Popen]) -> None:
    """Asks the ranks that still run to end, then ends them."""
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, deadline - time.monotonic()))
        kill(rank)
        rank.wait()


def kill(rank: subprocess.Popen) -> None:
    """Ends a rank and the processes that it has started, which share its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(rank.pid, signal.SIGKILL)


def watch_lifeline() -> None:
    """Ends this process when its launcher is gone: the launcher's end of the pipe closes with it."""
    descriptor = os.environ.pop(LIFELINE, None)
    if descriptor is None:
        return

    def watch() -> None:
        os.read(int(descriptor), 1)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # with the processes that it has started
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def launched() -> bool:
    """Whether a launcher of ours has started this rank."""
    return bool(os.environ.get(COMPLAINTS))


def told() -> bool:
    """Whether another rank, or the launcher, has said why the run ends; this rank need not add what follows from it."""
    if srun.is_rank():
        return srun.DESKS[0].told()
    folder = os.environ.get(COMPLAINTS)
    own = f"{int(os.environ.get('RANK', 0)):06d}"
    return bool(folder) and Path(str(folder)).is_dir() and any(each.name != own for each in Path(str(folder)).iterdir())


def complain(line: str) -> None:
    """Says one line of error: through the launcher, or rank 0 of srun's, so that equal lines of all ranks come once."""
    folder = os.environ.get(COMPLAINTS)
    if folder and Path(folder).is_dir():
        (Path(folder) / f"{int(os.environ.get('RANK', 0)):06d}").write_text(line, "utf8")
    elif not (srun.is_rank() and srun.DESKS[0].say(line)):
        print(line if is_first() else f"[rank {os.environ['RANK']}] {line}", file=sys.stderr)


def say(line: str) -> None:
    """Says one line of what happens, on the first rank only where a launcher of others started several."""
    if is_first():
        print(line, flush=True)
