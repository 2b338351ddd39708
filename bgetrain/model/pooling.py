"""Token states to one vector a text, and which way a checkpoint asks for."""

import json
from pathlib import Path

import torch
from torch import Tensor


class FileUnknownError(ValueError):
    """The hub cannot be reached to say whether a model has a file."""


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Reduces each row to one vector.

    Args:
        states: [N, L, D].
        mask: bool [N, L], True on real tokens, which stand to the left of padding; None: all are real.
        pooling: cls: the first token's state; mean: the average of real tokens' states; last: the last real token's.

    Returns:
        [N, D].
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        if mask is None:
            return states[:, -1]
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    assert pooling == "mean", pooling
    if mask is None:
        return states.mean(1)
    weights = mask.to(states.dtype)[:, :, None]  # [N, L, 1]
    return (states * weights).sum(1) / weights.sum(1)


def place_of(lengths: Tensor, pooling: str) -> Tensor | None:
    """Of texts laid end to end, where the token stands whose state is the text's: int64 [N]; None: all tokens count.

    Args:
        lengths: int64 [N], each > 0.
        pooling: cls | mean | last.
    """
    ends = lengths.cumsum(0)
    return {"cls": ends - lengths, "last": ends - 1, "mean": None}[pooling]


def average(states: Tensor, lengths: Tensor) -> Tensor:
    """Means [N, D] over the states [T, D] of each of N texts laid end to end."""
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, owner, states)
    return sums / lengths[:, None].to(states.dtype)


def pooling_of(path: str) -> str:
    """What `1_Pooling/config.json` of a folder or hub id says, in either of sentence-transformers' forms, else cls.

    Raises:
        ValueError: a pooling that bgetrain does not have, or a file that cannot be reached.
    """
    try:
        check_modules(file_of(path, "modules.json", optional=False))
        file = file_of(path, "1_Pooling/config.json", optional=False)
    except FileUnknownError as error:
        raise ValueError(f"model.pooling=auto: {error}: set model.pooling") from error
    if not file:
        return "cls"
    config = json.loads(file.read_text("utf8"))
    names = {"cls": "cls", "mean": "mean", "lasttoken": "last", "last": "last"}
    mode = config.get("pooling_mode")
    if mode is None:
        flags = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken"}
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        mode = flags.get(chosen[0], chosen[0]) if len(chosen) == 1 else "+".join(chosen)
    if config.get("include_prompt") is False:
        raise ValueError(f"{file}: include_prompt=false (prompts left out of the average) is not served: set model.pooling")
    if mode not in names:
        raise ValueError(f"{file}: pooling {mode!r} is not one of cls, mean, last: set model.pooling")
    return names[mode]


def check_modules(file: Path | None) -> None:
    """Holds what sentence-transformers would run after the encoder against what bgetrain runs.

    Raises:
        ValueError: `modules.json` lists another module than Transformer, Pooling and Normalize.
    """
    listed = json.loads(file.read_text("utf8")) if file else []
    others = [each["type"].rpartition(".")[2] for each in listed]
    others = [name for name in others if name not in ("Transformer", "Pooling", "Normalize")]
    if others:
        raise ValueError(
            f"{file}: has a module {others[0]}, which bgetrain does not run: take a model of Transformer, Pooling and Normalize, "
            "or set model.pooling to use its encoder alone"
        )


def file_of(path: str, name: str, *, optional: bool = True) -> Path | None:
    """Where a file of a folder or hub id lies on this machine; None where it has none.

    Args:
        path: `~` is expanded.
        name: within it.
        optional: where the hub cannot be reached, a model that was downloaded is taken to have the files that lie here alone.

    Raises:
        FileUnknownError: nothing of the model lies here, or `optional` is False and the file does not.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(path, name))
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(path, name) is _CACHED_NO_EXIST:  # asked for before, when the hub answered
            return None
        if optional and isinstance(try_to_load_from_cache(path, "config.json"), str):
            return None
        raise FileUnknownError(f"{name} of {path} is not on this machine and cannot be reached on the hub") from error
    except EntryNotFoundError:
        return None
