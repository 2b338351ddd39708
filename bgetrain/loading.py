"""A model for `Embedder`: its folder, its device, how much of a text goes through it at once."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bgetrain.data import tokenize as tokens
from bgetrain.logger import console
from bgetrain.model import body
from bgetrain.model.bi_encoder import BiEncoder
from bgetrain.model.packed import can_pack
from bgetrain.search import encode
from bgetrain.search.encode import Encoder

POOLINGS = ("cls", "mean", "last")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# what a model folder is made of on the hub
FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]
OTHERS = ["onnx/*", "openvino/*", "*/onnx/*"]
WORDS = {
    "model.path=": "model_name_or_path=",
    "model.tokenizer=": "model_name_or_path=",
    "model.tokenizer": "its tokenizer",
    "model.trust_remote_code=true": "trust_remote_code=True",
    "model.pooling=auto": "pooling_method=None",
    "model.pooling": "pooling_method",
    ", or build a small model with model=tiny": "",
}


class Settings(NamedTuple):
    """What a process must know to load the model.

    Attributes:
        path: a local folder.
        pooling: cls | mean | last; None: the folder's.
        trust_remote_code: run its code.
        precision: fp32 | bf16 | fp16.
        normalize: vectors of length 1.
        truncate_dim: the numbers of a vector that are kept; None: all.
        lower_case: texts become lower case.
        device: where.
        threads: of a CPU; None: as they are.
    """

    path: str
    pooling: str | None
    trust_remote_code: bool
    precision: str
    normalize: bool
    truncate_dim: int | None
    lower_case: bool
    device: str
    threads: int | None


class Ready:
    """A model on a device.

    Attributes:
        encoder: the model, its cut of a piece by `budget`.
        settings: what it was loaded by.
        max_positions: tokens of a text at most.
        width: D of the vectors.
        budget: tokens of a pass at most, in use.
        limit: what the memory was found to hold; None: it never ran out.
    """

    def __init__(self, made: body.Body, settings: Settings) -> None:
        device = torch.device(settings.device)
        packed = can_pack(made.backbone, device)
        module = BiEncoder(made.backbone, made.pooling, packed=packed, normalized=settings.normalize)
        pad_id = None if packed else made.tokenizer.pad_token_id
        self.encoder = Encoder(
            module.to(device, PRECISIONS[settings.precision]).eval(),
            made.tokenizer,
            cut=lambda lengths: tokens.cut(lengths, self.budget, padded=not packed),
            chunk=lambda text, group: tokens.chunk(text, group, pad_id),
            device=device,
        )
        self.settings, self.max_positions = settings, made.max_positions
        self.width = settings.truncate_dim or encode.width(module)
        self.budget = 1
        self.limit: int | None = None

    def shrink(self, lengths: Tensor, error: Exception) -> None:
        """Halves the budget after a pass over texts of these lengths ran out of memory.

        Raises:
            ValueError: the pass was of one text.
        """
        if len(lengths) == 1:
            raise ValueError(
                f"{self.settings.device}: too little memory for one text of {int(lengths[0])} tokens: set a smaller max_length"
            ) from error
        self.budget = self.limit = max(1, min(self.budget, int(lengths.sum())) // 2)
        if self.encoder.device.type == "cuda":
            torch.cuda.empty_cache()
        console.say(f"encode: memory ran out on {self.settings.device}: {self.budget:,} tokens at once from here on")


def located(path: str, cache_dir: str | None) -> str:
    """The local folder of a model; one of the hub is downloaded where it is not here yet.

    Raises:
        ValueError: there is none, or it cannot be reached.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(f"model_name_or_path must be a folder or a hub id, got {path!r}")
    with in_our_words():
        found = body.checked_path(str(path), "model.path")
        if Path(found).is_dir():
            return found
        from huggingface_hub import snapshot_download

        options: dict[str, Any] = {"cache_dir": cache_dir, "allow_patterns": FILES, "ignore_patterns": OTHERS}
        return str(body.loaded(lambda: snapshot_download(found, **options), "model.path", found))


@contextlib.contextmanager
def in_our_words() -> Iterator[None]:
    """Errors that name keys of a config name the arguments of `Embedder` instead."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        for theirs, ours in WORDS.items():
            said = said.replace(theirs, ours)
        raise ValueError(said) from error


def devices_of(given: str | int | Sequence[str | int] | None) -> list[str]:
    """Names of devices that are there.

    Raises:
        ValueError: one is not, or is no device.
    """
    if given is None:
        found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        return found or (["mps"] if torch.backends.mps.is_available() else ["cpu"])
    listed = [given] if isinstance(given, str | int | torch.device) else list(given)
    if not listed:
        raise ValueError("devices=[]: name at least one, such as 'cuda:0' or 'cpu', or leave it out")
    return [device_of(each) for each in listed]


def device_of(given: Any) -> str:
    wanted = f"cuda:{given}" if isinstance(given, int) and not isinstance(given, bool) else str(given)
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"devices: {wanted!r} is no device: name it such as 'cuda:0', 'mps' or 'cpu'") from error
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}.get(device.type, 0)
    if (device.index or 0) >= count:
        here = [f"cuda:{number}" for number in range(torch.cuda.device_count())] + ["cpu"]
        raise ValueError(f"devices: there is no {wanted} here: {', '.join(here)}")
    return "cuda:0" if wanted == "cuda" else wanted


def load(settings: Settings) -> Ready:
    """The model on its device.

    Raises:
        ValueError: it cannot be loaded, or has fewer numbers than are asked for.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.pooling not in (*POOLINGS, None):
        raise ValueError(f"pooling_method must be cls, mean or last, or None for the folder's own, got {settings.pooling!r}")
    used = torch.cuda.is_initialized() or torch.device(settings.device).type == "cuda"  # a CPU's work starts no GPU
    # the seed, which is for weights that a folder lacks, is not to be that of the caller
    with in_our_words(), torch.random.fork_rng(range(torch.cuda.device_count()) if used else []):
        made = body.pretrained(
            settings.path,
            tokenizer=None,
            dropout=None,
            pooling=settings.pooling or "auto",  # type: ignore[arg-type]
            gradient_checkpointing=False,
            trust_remote_code=settings.trust_remote_code,
            lora=None,
            lora_scale=1.0,
            lora_dropout=0.0,
            masked_lm=False,
            seed=0,
            vocabulary=lambda *_: None,
        )
    width = made.backbone.config.hidden_size
    if settings.truncate_dim is not None and settings.truncate_dim > width:
        raise ValueError(f"truncate_dim={settings.truncate_dim}: vectors of this model have {width} numbers")
    return Ready(made, settings)
