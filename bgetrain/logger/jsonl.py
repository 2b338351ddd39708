"""metrics.jsonl: one JSON object per logged step."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from bgetrain.types import Log


class Lines:
    """An open metrics.jsonl."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends `{"step": step, **metrics}`; a figure that is not finite is null, since JSON has no NaN."""
        figures = {name: _json_number(value) for name, value in metrics.items()}
        self.file.write(json.dumps({"step": step, **figures}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def start(path: Path, first_step: int) -> "Log":
    """Opens `path` for appending, having dropped what will be logged again.

    Args:
        path: metrics.jsonl; made if it is not there.
        first_step: the step that comes next, 1 in a new run; lines of this step and later ones are dropped, and so is
            a last line that was cut off while it was written.

    Raises:
        ValueError: a whole line of the file is not an object with a step.
    """
    if path.exists():
        _drop_from(path, first_step)
    return Lines(path.open("a", encoding="utf8"))


def _drop_from(path: Path, first_step: int) -> None:
    """Rewrites `path` without the steps from `first_step` on; it is whole at every moment."""
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
                    new.write(line.rstrip(b"\n") + b"\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _json_number(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    number = float(value)  # numpy's numbers are not JSON's
    return number if math.isfinite(number) else None
