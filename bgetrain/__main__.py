"""`python -m bgetrain` and the command `bgetrain`."""

import os
import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Runs one command and ends this process."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # while importing; then `interrupts` hears them
        signal.signal(number, lambda *_: os._exit(75))
    try:
        from bgetrain.cli import main
        from bgetrain.cluster.local import leave

        leave(main())
    except KeyboardInterrupt:  # while importing
        sys.exit(75)


if __name__ == "__main__":
    run()
