"""What a run leaves besides its result: it may fail, and the run is done all the same."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from bgetrain import trust


def safely(name: str, write: Callable[[Path], None], folder: Path) -> bool:
    """Calls `write(folder)`; what goes wrong is told in one line. Returns whether nothing did.

    Args:
        name: of what is written.
        write: writes it.
        folder: of a run or a recipe.
    """
    try:
        if not folder.is_dir():  # it would be made anew
            raise FileNotFoundError(f"{folder} is no longer there")
        write(folder)
    except Exception as error:  # whatever it is: the result is there
        what = trust.masked_text(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            print(f"WARNING: {folder / name} was not written ({what})", file=sys.stderr, flush=True)
        return False
    return True
