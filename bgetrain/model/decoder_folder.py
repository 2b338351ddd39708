"""The `decoder/` folder: what RetroMAE trains beside the encoder, for going on where it ended."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bgetrain.model.retromae import EnhancedDecoder

WEIGHTS = "decoder.safetensors"
CONFIG = "config.json"
FRESH = "decoder=fresh starts a new one"  # the way out, at the end of each message


def save(folder: Path, weights: dict[str, Tensor], *, query: str, model_type: str, num_heads: int) -> None:
    """Writes a decoder's weights in fp32 and what it was built for; all or nothing.

    Args:
        folder: replaced where it exists.
        weights: the whole state of an `EnhancedDecoder`.
        query: position | embedding, what it was trained with.
        model_type: of the backbone beside which it was trained.
        num_heads: of its attention.
    """
    from safetensors.torch import save_file

    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file({name: each.detach().float().cpu().contiguous() for name, each in weights.items()}, beside / WEIGHTS)
    config = {
        "query": query,
        "model_type": model_type,
        "hidden_size": weights["query.weight"].shape[1],
        "num_heads": num_heads,
        "intermediate_size": weights["intermediate.weight"].shape[0],
    }
    (beside / CONFIG).write_text(json.dumps(config, indent=2), "utf8")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def load(folder: Path, decoder: EnhancedDecoder) -> dict[str, Any]:
    """Puts saved weights into a decoder of the same sizes.

    Args:
        folder: what `save` wrote.
        decoder: changed in place, once all is known to fit.

    Returns:
        What `config.json` says.

    Raises:
        ValueError: a file is missing or damaged, or was saved for a decoder of other sizes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"decoder={folder}: has no {name}, so it is no saved decoder; {FRESH}")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf8"))
        heads, _, _ = (config[key] for key in ("num_heads", "query", "model_type"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: is damaged ({error!r}); {FRESH}") from error
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: is damaged or cut short ({error}); {FRESH}") from error
    ours = decoder.state_dict()
    if heads != decoder.num_heads:
        raise ValueError(f"{folder / CONFIG}: num_heads is {heads}, but the model has {decoder.num_heads}; {FRESH}")
    if weights.keys() != ours.keys():
        odd = min(weights.keys() ^ ours.keys())
        raise ValueError(f"{folder / WEIGHTS}: {odd} is {'missing' if odd in ours else 'unknown'}; {FRESH}")
    for name, each in ours.items():
        if weights[name].shape != each.shape:
            saved, wanted = list(weights[name].shape), list(each.shape)
            raise ValueError(f"{folder / WEIGHTS}: {name} is {saved}, but the model needs {wanted}; {FRESH}")
    with torch.no_grad():
        decoder.load_state_dict(weights)
    return config
