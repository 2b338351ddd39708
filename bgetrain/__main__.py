"""`python -m bgetrain` and the command `bgetrain`."""

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Runs one command and ends this process."""
    try:
        from bgetrain.cli import main
        from bgetrain.cluster.local import leave

        leave(main())
    except KeyboardInterrupt:  # while importing
        sys.exit(75)


if __name__ == "__main__":
    run()
