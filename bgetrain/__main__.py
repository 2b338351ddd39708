"""`python -m bgetrain`: the same as the command `bgetrain`."""

import sys

from bgetrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
