"""`python -m bgetrain`: the same as the command `bgetrain`."""

import os
import signal
import sys

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1):  # while importing; then `interrupts` hears them
        signal.signal(number, lambda *_: os._exit(75))
    try:
        from bgetrain.cli import main
        from bgetrain.cluster.local import leave

        leave(main())
    except KeyboardInterrupt:  # while importing
        sys.exit(75)
