"""The texts of a source as token ids to train on: cut at their limit, or as spans that are prepared once and kept."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bgetrain import distributed
from bgetrain.data.spans import FORMAT
from bgetrain.data.texts import Tokens
from bgetrain.data.tokenize import contents
from bgetrain.sources import Part, Texts
from bgetrain.stage import build, embed
from bgetrain.target import call
from bgetrain.types import World

LOOKED_AT = 64  # texts, to tell two sources apart that are not read from files


def opened(cfg: build.Config, part: Part, texts: Texts, tokenizer: Any, world: World) -> Tokens:
    """What a source is trained on; rank 0 prepares it with all cores, the others wait and read the same files.

    Raises:
        ValueError: what `spans` raises, or the place of the caches cannot be written.
    """
    max_len, rules = part.source.passage_max_len, cfg["documents"]
    cores = len(os.sched_getaffinity(0))
    folder = Path() if rules["cut"] == "truncate" else kept_in(cfg, part, texts, tokenizer)

    def prepared() -> Tokens:
        try:
            made: Tokens = call(rules, texts, tokenizer, max_len, folder, num_workers=cores, advance=advance)
        except OSError as error:
            raise ValueError(
                f"documents.cut={rules['cut']}: spans are kept in {folder.parent}: {error.strerror or error}; set "
                "HF_DATASETS_CACHE to a place with 8 bytes for each token, or documents.cut=truncate"
            ) from error
        return made

    with embed.track(f"documents of {part.name}", len(texts), world) as advance:
        return distributed.after_first(world, prepared)


def kept_in(cfg: build.Config, part: Part, texts: Texts, tokenizer: Any) -> Path:
    """A folder for these texts, this vocabulary and this way to cut, beside the other caches of data."""
    import datasets

    sample = np.unique(np.linspace(0, len(texts) - 1, LOOKED_AT).astype(int)).tolist()
    stamps = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in part.source.files]
    facts = [
        FORMAT,
        stamps,
        len(texts),
        texts.take(sample),
        contents(tokenizer),
        tokenizer.all_special_ids,
        part.source.passage_max_len,
        cfg["documents"],
        cfg["evaluate"]["every"] and cfg["evaluate"]["held_out"],
    ]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "bgetrain" / "spans" / name
