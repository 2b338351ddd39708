"""The texts of a source as token ids to train on: cut at their limit, or as spans that were prepared once and kept."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bgetrain import distributed
from bgetrain.data.files import fingerprint
from bgetrain.data.spans import FORMAT
from bgetrain.data.texts import Tokens
from bgetrain.sources import Part, Texts
from bgetrain.stage import build, embed
from bgetrain.target import call
from bgetrain.types import World

LOOKED_AT = 64  # texts, to tell two sources apart that are not read from files


def opened(cfg: build.Config, part: Part, texts: Texts, tokenizer: Any, world: World) -> Tokens:
    """What a source is trained on; rank 0 prepares it with all cores, the others wait and read the same files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folder = kept_in(cfg, part, texts, tokenizer)
    with embed.track(f"documents of {part.name}", len(texts), world) as advance:
        tokens: Tokens = distributed.after_first(
            world,
            lambda: call(
                cfg["documents"], texts, tokenizer, part.source.passage_max_len, folder, num_workers=cores, advance=advance
            ),
        )
    return tokens


def kept_in(cfg: build.Config, part: Part, texts: Texts, tokenizer: Any) -> Path:
    """A folder for these texts, this vocabulary and this way to cut, beside the other caches of data."""
    import datasets

    sample = np.unique(np.linspace(0, len(texts) - 1, LOOKED_AT).astype(int)).tolist()
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    words |= {"truncation": None, "padding": None}  # change with each use
    facts = [
        FORMAT,
        fingerprint(part.source.files),
        len(texts),
        texts.take(sample),
        words,
        part.source.passage_max_len,
        cfg["documents"],
        cfg["eval_every"] and cfg["eval_texts"],
    ]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "bgetrain" / "spans" / name
