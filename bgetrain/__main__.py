"""`python -m bgetrain`: the same as the command `bgetrain`."""

import sys

if __name__ == "__main__":
    try:
        from bgetrain.cli import main
        from bgetrain.cluster.local import leave

        leave(main())
    except KeyboardInterrupt:  # while importing
        sys.exit(75)
