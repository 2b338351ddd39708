"""LoRA (Hu et al. 2021, arXiv:2106.09685): small trained matrices beside frozen ones; the only file that imports peft."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAME = "default"  # what peft calls an adapter nobody named; it stands in the names of the weights


class Adapters(NamedTuple):
    """The adapters of an encoder, and what is needed to save them.

    Attributes:
        config: peft's LoraConfig.
        layers: the adapted layers by name; True where the weight is stored [inputs, outputs], as GPT-2 does.
        frozen: the encoder's own weights, fp32, under the names they have without adapters. They share memory with the
            encoder until an engine rounds, moves or splits it; empty on a rank that does not save.
    """

    config: Any
    layers: dict[str, bool]
    frozen: dict[str, Tensor]


def adapt(backbone: Any, *, path: str, rank: int, scale: float, dropout: float, seed: int) -> Adapters:
    """Freezes an encoder and puts adapters on every linear layer in it, in place: x W becomes x W + scale * x A B.

    Args:
        backbone: a transformers model without head, fp32.
        path: folder or hub id of the backbone, for the adapters' own config.
        rank: columns of A and rows of B, > 0.
        scale: what peft calls alpha / rank, > 0.
        dropout: of the input of A.
        seed: of A; B starts at 0, so that the first step's embeddings are those of the backbone.

    Raises:
        ValueError: the package peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"model.lora={rank} needs peft, which is not installed: pip install peft") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # peft divides by the rank; a fraction is as good
        lora_dropout=dropout,
        target_modules="all-linear",
        bias="none",
        task_type="FEATURE_EXTRACTION",
        base_model_name_or_path=str(Path(path).resolve()) if Path(path).exists() else path,
    )
    frozen = {name: each.detach() for name, each in backbone.state_dict().items()}
    torch.manual_seed(seed)
    inject_adapter_in_model(config, backbone, NAME)
    layers = {name: each.fan_in_fan_out for name, each in backbone.named_modules() if hasattr(each, "lora_A")}
    # peft shortens the list to suffixes that are unambiguous here, but not in a model with a pooler
    config.target_modules = sorted(layers)
    config.inference_mode = True  # for whoever loads them; peft looks at it once, above
    return Adapters(config, layers, frozen)


def merged(adapters: Adapters, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights with the adapters added: W + scale * B A, in fp32, under their plain names.

    Args:
        adapters: with their frozen weights.
        trained: A [rank, inputs] and B [outputs, rank] of each layer, fp32 on the host, named as in the encoder.
    """
    scale = adapters.config.lora_alpha / adapters.config.r
    weights = {name: each.float().cpu() for name, each in adapters.frozen.items()}
    for layer, transposed in adapters.layers.items():
        product = trained[f"{layer}.lora_B.{NAME}.weight"] @ trained[f"{layer}.lora_A.{NAME}.weight"]  # [outputs, inputs]
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * (product.T if transposed else product)
    return weights


def save(folder: Path, adapters: Adapters, trained: dict[str, Tensor]) -> None:
    """Writes `folder` as `peft.PeftModel.from_pretrained(encoder, folder)` reads it; all or nothing, arguments as `merged`."""
    from safetensors.torch import save_file

    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    # peft wraps a model twice and leaves the adapter's own name out
    plain = {f"base_model.model.{name.replace(f'.{NAME}.', '.')}": each.contiguous() for name, each in trained.items()}
    save_file(plain, beside / "adapter_model.safetensors", metadata={"format": "pt"})
    adapters.config.save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
