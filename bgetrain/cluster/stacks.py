"""Where every thread of this rank stands, in words and in a file."""

import faulthandler
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from bgetrain import progress


def standing() -> str:
    """What the main thread does: `waiting in COLLECTIVE`, or the line where it is."""
    wait = progress.waiting()
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if wait is None:
        inside = collective_of(frame)
        if inside:
            return f"waiting in {inside}"
    else:
        return f"waiting in {wait.what}"
    return f"at {Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "without a stack"


def collective_of(frame: FrameType | None) -> str | None:
    """The function of torch.distributed that a stack is in, where another package called it."""
    found = None
    while frame is not None:
        if Path(frame.f_code.co_filename).name == "distributed_c10d.py":
            found = frame.f_code.co_name
        frame = frame.f_back
    return found


def dump(path: Path, who: str) -> None:
    """Writes the Python stacks of all threads; to standard error where the folder cannot be written.

    Args:
        path: of this rank.
        who: rank, host and process.
    """
    wait, idle = progress.waiting(), progress.idle_seconds()
    since = time.monotonic() - wait.since if wait else idle
    for_long = "" if since is None else f" for {since:.0f} s, since {time.strftime('%F %T', time.localtime(time.time() - since))}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf8") as file:
            file.write(f"{who}: {standing()}{for_long}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError:
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
