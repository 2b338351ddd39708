"""One process at a time, watched: its step lines, its peak resident memory, and its end at a limit."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

POLL_SECONDS = 0.1
MEMORY_WORDS = ("MemoryError", "can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate memory")


class Limits(NamedTuple):
    """Where a run ends.

    Attributes:
        memory_bytes: resident, and data that the process may map.
        seconds: from the start of the process.
        threads: of OpenMP.
    """

    memory_bytes: int
    seconds: float
    threads: int


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        status: "done", "out of memory (> N GB)", "> N s" or "failed: ...".
        lines: one object per finished step.
        peak_bytes: VmHWM, the most that was resident.
    """

    status: str
    lines: list[dict[str, Any]]
    peak_bytes: int


def watch(command: list[str], lines: Path, log: Path, *, steps: int, limits: Limits, paths: list[str]) -> Outcome:
    """Runs `command` until `lines` holds `steps` lines, then ends it.

    Args:
        command: appends one JSON object per step to `lines`.
        lines: does not exist yet.
        log: receives stdout and stderr.
        steps: the run is asked for more, so that the making of the next batch is inside every timed step.
        limits: of memory and time.
        paths: PYTHONPATH.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {name: str(limits.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = {**os.environ, **threads, **quiet, "PYTHONPATH": os.pathsep.join(paths)}
    started, peak, status = time.perf_counter(), 0, ""
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        resource.prlimit(child.pid, resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
        try:
            while not status:
                time.sleep(POLL_SECONDS)
                peak = max(peak, peak_memory(child.pid))
                if len(read(lines)) >= steps:
                    status = "done"
                elif peak > limits.memory_bytes:
                    status = out_of_memory(limits)
                elif time.perf_counter() - started > limits.seconds:
                    status = f"> {limits.seconds:,.0f} s"
                elif child.poll() is not None:
                    status = why(log, limits, child.returncode)
        finally:
            # its own session: whatever it started ends with it
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return Outcome(status, read(lines), peak)


def peak_memory(pid: int) -> int:
    """VmHWM in bytes; 0 where the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def read(lines: Path) -> list[dict[str, Any]]:
    if not lines.exists():
        return []
    # the last piece is empty, or a line that is still being written
    return [json.loads(line) for line in lines.read_text("utf8").split("\n")[:-1]]


def out_of_memory(limits: Limits) -> str:
    return f"out of memory (> {limits.memory_bytes / 1e9:.0f} GB)"


def why(log: Path, limits: Limits, code: int) -> str:
    """What the log says of an end before the steps were done."""
    text = log.read_text("utf8", errors="replace").strip()
    if any(word in text for word in MEMORY_WORDS):
        return out_of_memory(limits)
    return f"failed ({code}): {(text.splitlines() or ['no output'])[-1][:160]}"
