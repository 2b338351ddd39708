"""metrics.jsonl: one JSON object per logged step."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bgetrain.logger import console

if TYPE_CHECKING:
    from bgetrain.types import Log


class Lines:
    """metrics.jsonl, open for appending; what a bad disk refuses is kept and written when it can be.

    Args:
        path: metrics.jsonl; made if it is not there.
        last: step of its last line; -1: there is none.
    """

    def __init__(self, path: Path, last: int) -> None:
        self.path, self.last = path, last
        self.again: int | None = None  # a run that had to go further back logs again from this step on
        self.waiting: list[bytes] = []  # lines that are not in the file yet
        self.fault: OSError | None = None  # why they are not
        self.descriptor = -1
        self.whole = path.stat().st_size if path.exists() else 0  # bytes of the file's whole lines
        self.open()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends `{"step": step, **metrics}`; a figure that is not finite is null, since JSON has no NaN."""
        figures = {name: _json_number(value) for name, value in metrics.items()}
        if step <= self.last:
            self.again = step
        self.last = step
        self.waiting.append((json.dumps({"step": step, **figures}) + "\n").encode())
        count = len(self.waiting)
        if not self.write():
            return
        if self.fault:
            console.say(f"{self.path} can be written again: the {count} lines kept in memory are in it")
        self.fault = None

    def write(self) -> bool:
        """Tries to write the lines that wait; says so the first time that it cannot."""
        try:
            if self.again is not None:
                self.go_back(self.again)
            if self.descriptor < 0 or os.fstat(self.descriptor).st_nlink == 0:  # the file, or its folder, was removed
                self.open()
            self.append()
        except OSError as error:
            if self.fault is None:
                console.say(
                    f"WARNING: {self.path} cannot be written ({os.strerror(error.errno or errno.EIO)}): training goes on, "
                    "its lines are kept in memory and written when they can be"
                )
            self.fault = error
            self.shut()
            return False
        return True

    def open(self) -> None:
        """Opens the file at the end of its last whole line; what a failed write has left behind that is cut off."""
        self.shut()
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        size = os.fstat(self.descriptor).st_size
        if size < self.whole:  # another file: the mount came back without the last lines
            head = os.pread(self.descriptor, size, 0)
            self.whole = head.rfind(b"\n") + 1
        if size > self.whole:
            os.ftruncate(self.descriptor, self.whole)

    def go_back(self, step: int) -> None:
        """Takes away the lines from `step` on: a damaged checkpoint has sent the run back before the last one."""
        _drop_from(self.path, step)
        self.whole, self.again = self.path.stat().st_size, None
        self.open()

    def append(self) -> None:
        """Writes the lines that wait, and forgets those that are whole in the file."""
        data = b"".join(self.waiting)
        done = 0
        try:
            while done < len(data):
                done += os.write(self.descriptor, data[done:])
        finally:
            while self.waiting and len(self.waiting[0]) <= done:
                line = self.waiting.pop(0)
                done -= len(line)
                self.whole += len(line)

    def shut(self) -> None:
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):  # some network file systems tell only now what a write has met
                os.close(self.descriptor)
        self.descriptor = -1

    def close(self) -> None:
        """Tries a last time; what is still not written is lost."""
        if self.waiting and not self.write():
            reason = os.strerror((self.fault and self.fault.errno) or errno.EIO)
            console.say(f"WARNING: {self.path}: the last {len(self.waiting)} lines are lost ({reason})")
        self.shut()


def start(path: Path, first_step: int) -> "Log":
    """Opens `path` for appending, having dropped what will be logged again.

    Args:
        path: metrics.jsonl; made if it is not there.
        first_step: the step that comes next, 1 in a new run; lines of this step and later ones are dropped, and so is
            a last line that was cut off while it was written.

    Raises:
        ValueError: a whole line of the file is not an object with a step.
    """
    return Lines(path, _drop_from(path, first_step) if path.exists() else -1)


def _drop_from(path: Path, first_step: int) -> int:
    """Rewrites `path` without the steps from `first_step` on; it is whole at every moment. Returns the last step left, or -1."""
    last = -1
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with path.open("rb") as old, beside.open("wb") as new:
            for number, line in enumerate(old, 1):
                try:
                    step = json.loads(line)["step"]
                    keep = step < first_step
                except (ValueError, KeyError, TypeError) as error:
                    if not line.endswith(b"\n"):  # the run was killed in the middle of it
                        break
                    shown = line[:60].decode("utf8", "replace").strip()
                    rule = 'must be a JSON object with a whole number "step"; mend or remove the line'
                    raise ValueError(f"{path}:{number}: {shown!r} {rule}") from error
                if keep:
                    last = max(last, step)
                    new.write(line.rstrip(b"\n") + b"\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return last


def _json_number(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    number = float(value)  # numpy's numbers are not JSON's
    return number if math.isfinite(number) else None
