"""An encoder as an ONNX graph; the only file that imports onnx, onnxscript and onnxruntime.

The graph ends at `last_hidden_state` and stands in `onnx/model.onnx`: so sentence-transformers (backend="onnx"),
text-embeddings-inference and transformers.js look for it, which pool and normalise by themselves.
"""

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bgetrain.model.pooling import pool
from bgetrain.quiet import quiet

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 18  # what torch's exporter writes by itself
ONE_FILE = 1 << 30  # bytes of weights up to which they stand in the graph's own file; protobuf ends at 2 GB
LEAST_COSINE = 0.99999
BATCHES = ((1, 1), (3, 17), (8, 40), (2, 512))  # texts and the longest's tokens, on which both are compared


class Exported(NamedTuple):
    """What was written and how far it is from the encoder.

    Attributes:
        inputs: names of the graph's inputs, each int64 [texts, tokens].
        opset: of ONNX.
        bytes: of the file or files.
        largest_difference: of any number of any unit vector.
        lowest_cosine: of a vector with the encoder's, over all texts compared.
        texts: how many were compared.
    """

    inputs: list[str]
    opset: int
    bytes: int
    largest_difference: float
    lowest_cosine: float
    texts: int


def check_installed() -> None:
    """Finds the packages before anything is done.

    Raises:
        ValueError: one is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript

        del onnx, onnxruntime, onnxscript
    except ImportError as error:
        raise ValueError(f"export.onnx=true needs the package {error.name}: pip install 'bgetrain[onnx]'") from error


class States(nn.Module):
    """An encoder that takes tensors by position and gives its last states alone."""

    def __init__(self, backbone: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """[N, L] each -> [N, L, D]."""
        states: Tensor = self.backbone(**dict(zip(self.names, tensors, strict=True))).last_hidden_state
        return states


def export(path: Path, backbone: Any, tokenizer: Any, *, pooling: str, max_positions: int) -> Exported:
    """Writes an encoder as ONNX and holds it against the encoder in onnxruntime.

    Args:
        path: of the graph; large weights go beside it, to `path` + `.data`.
        backbone: a transformers encoder, fp32, on the CPU.
        tokenizer: its own; says which inputs it has.
        pooling: cls | mean | last, of the vectors that are compared.
        max_positions: the most tokens a text may have.

    Raises:
        ValueError: a package is missing, torch cannot export the architecture, or the graph's vectors are not the encoder's.
    """
    check_installed()
    accepted = inspect.signature(backbone.forward).parameters
    names = [name for name in INPUTS if name in accepted and (name in tokenizer.model_input_names or name != INPUTS[2])]
    wrapped = States(backbone, names).eval()
    batches = [batch(tokenizer, names, texts, min(longest, max_positions), seed) for seed, (texts, longest) in enumerate(BATCHES)]
    example = batch(tokenizer, names, 2, min(8, max_positions), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(each.numel() * each.element_size() for each in backbone.parameters())
    axes = {0: "batch", 1: "sequence"}
    try:
        with quiet("torch.onnx"):
            torch.onnx.export(
                wrapped,
                tuple(example),
                path,
                dynamo=True,
                input_names=names,
                output_names=["last_hidden_state"],
                dynamic_shapes=(tuple(dict(axes) for _ in names),),
                opset_version=OPSET,
                external_data=size > ONE_FILE,
                verbose=False,
            )
    except Exception as error:  # torch.export and its translation raise whatever they stumble over
        reason = " ".join(str(error).split())[:160]
        kind = backbone.config.model_type
        raise ValueError(f"export.onnx=true: torch.onnx cannot export {kind!r} ({type(error).__name__}: {reason})") from error
    difference, cosine, texts = compared(path, wrapped, batches, pooling)
    written = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
    if not cosine > LEAST_COSINE:
        for each in path.parent.glob(f"{path.name}*"):
            each.unlink()
        raise ValueError(
            f"export.onnx=true: vectors of the graph in onnxruntime are not the model's, lowest cosine {cosine:.7f} of {texts} "
            f"texts where above {LEAST_COSINE} is needed: not exported"
        )
    return Exported(names, OPSET, written, difference, cosine, texts)


def batch(tokenizer: Any, names: list[str], texts: int, longest: int, seed: int) -> list[Tensor]:
    """Texts of random tokens, ragged: int64 [texts, longest] for each name."""
    draw = np.random.default_rng(seed)
    special = set(tokenizer.all_special_ids)
    words = np.array([number for number in range(len(tokenizer)) if number not in special])
    lengths = draw.integers(1, longest + 1, texts)
    lengths[0] = longest
    mask = np.arange(longest) < lengths[:, None]
    ids = np.where(mask, draw.choice(words, (texts, longest)), tokenizer.pad_token_id)
    tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return [torch.from_numpy(tensors[name].astype(np.int64)) for name in names]


def compared(path: Path, wrapped: States, batches: list[list[Tensor]], pooling: str) -> tuple[float, float, int]:
    """Largest difference of a number, lowest cosine of a vector, and how many texts were compared."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # its own guess is all cores of the machine
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    difference, cosine, texts = 0.0, 1.0, 0
    for tensors in batches:
        mask = tensors[wrapped.names.index("attention_mask")].bool()
        theirs = session.run(
            ["last_hidden_state"], {name: each.numpy() for name, each in zip(wrapped.names, tensors, strict=True)}
        )
        with torch.no_grad():
            states = (torch.from_numpy(theirs[0]), wrapped(*tensors))
        found, expected = (F.normalize(pool(each, mask, pooling).double(), dim=1) for each in states)
        difference = max(difference, float((found - expected).abs().max()))
        lowest = float((found * expected).sum(1).min())
        cosine = min(cosine, lowest) if lowest == lowest else float("nan")
        texts += len(mask)
    return difference, cosine, texts
