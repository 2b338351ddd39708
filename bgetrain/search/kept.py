"""A note of which files hold the embeddings of a corpus, so that they are found without reading its texts."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from bgetrain.search import shards
from bgetrain.search.shards import Embeddings, mapped

FORMAT = 1  # of the note


def note_of(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Where the note stands of embeddings that depend on `facts`, beside their files in `folder`."""
    digest = blake2b(json.dumps([FORMAT, facts], sort_keys=True).encode(), digest_size=16)
    return folder / f"{digest.hexdigest()}.json"


def keep(note: Path, names: Sequence[str]) -> None:
    """Writes which files, by name and in the order of the blocks, hold the embeddings."""
    note.parent.mkdir(parents=True, exist_ok=True)
    beside = note.with_name(f".{note.name}.{socket.gethostname()}.{os.getpid()}")
    beside.write_text(json.dumps({"blocks": list(names)}), "utf8")
    beside.replace(note)


def found(note: Path, total: int, width: int) -> Embeddings | None:
    """The embeddings of a note, all on this rank; None where there is no note, or a file is gone or of another size.

    What the files hold is not read, so that a large index opens at once; `shards.is_whole` has looked when the note was made.
    """
    try:
        paths = [note.parent / str(name) for name in json.loads(note.read_text("utf8"))["blocks"]]
        sizes = [min(shards.BLOCK, total - start) for start in range(0, total, shards.BLOCK)]
        shapes = [np.load(path, mmap_mode="r").shape for path in paths]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if shapes != [(size, width) for size in sizes]:
        return None
    return Embeddings(total, width, range(total), lambda number: mapped(paths[number]))
