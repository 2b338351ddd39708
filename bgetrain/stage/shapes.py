"""What a config says of a model, its texts and its numbers, for a device that is not at hand."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bgetrain.forecast import passes, steps
from bgetrain.forecast.passes import Encoder, Setting
from bgetrain.forecast.rehearsal import Pass
from bgetrain.forecast.steps import Moments, Work

Config = Mapping[str, Any]
GPUS = 8  # of a machine where nothing says how many
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision(cfg: Config, device: Config, zero_stage: int) -> str:
    """Of a run on that device, as `build.precision` decides.

    Raises:
        ValueError: the device has no such products.
    """
    asked = str(cfg["precision"])
    if asked == "auto":
        return "bf16" if device["bf16"] is not None and zero_stage > 0 else "fp32"
    if device[asked] is None:
        raise ValueError(f"precision={asked}: plan.devices says that this device has none: use fp32 or another plan.gpu")
    return asked


def moments_of(optim: Config) -> int:
    """How many numbers an optimizer keeps of each parameter."""
    return 2 if "betas" in optim else int(bool(optim.get("momentum")))


def size(cfg: Config, asked: Config) -> dict[str, int]:
    """`gpus` and `gpus_per_machine` of a step: those of the plan, else those of its own job, else 8."""
    cluster = cfg["cluster"]
    machine = cluster.get("tasks_per_node") or cluster.get("gpus_per_node")
    own = cluster["nodes"] * machine if machine else cfg.get("num_processes")
    return {"gpus": asked["gpus"] or own or GPUS, "gpus_per_machine": asked["gpus_per_machine"] or machine or GPUS}


def link(asked: Config, device: Config) -> float:
    """GB/s that a rank sends: a ring over machines goes at the speed of their network."""
    return float(device["link"] if asked["gpus"] <= asked["gpus_per_machine"] else min(device["link"], asked["network"]))


def lengths(cfg: Config, asked: Config) -> tuple[int, int]:
    """Tokens of a query and of a passage: the most that the data allows, or what is asked."""
    nodes: Sequence[Mapping[str, Any]] = list((cfg["data"].get("sources") or {}).values()) or [cfg["data"]]  # of a mixture
    found = []
    for key, given in (("query_max_len", asked["query_tokens"]), ("passage_max_len", asked["passage_tokens"])):
        most = max((node[key] for node in nodes if isinstance(node.get(key), int)), default=512)
        found.append(given or most)
    return found[0], found[1]


def encoder_of(cfg: Config, asked: Config, earlier: Mapping[str, Encoder]) -> Encoder:
    """The shape of a model: of an earlier step, a folder, a known name, YAML, or the hub.

    Args:
        cfg: of the stage.
        asked: of the plan.
        earlier: folder of a model that a step before will have written -> its shape.

    Raises:
        ValueError: there is no such model.
    """
    from transformers import AutoConfig, BertConfig

    from bgetrain.model import body

    node = cfg["model"]
    if "path" not in node:
        names = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "max_position_embeddings": "max_len"}
        same = ("vocab_size", "hidden_size", "intermediate_size")
        shape = {name: node[key] for name, key in (*names.items(), *zip(same, same, strict=True))}
        drops = {"hidden_dropout_prob": node["dropout"], "attention_probs_dropout_prob": node["dropout"]}
        return Encoder(BertConfig(**shape, **drops), node["pooling"], None)
    body.quiet()
    path, name = node["path"], Path(node["path"]).name
    pooling = node["pooling"] if node["pooling"] != "auto" else "cls"
    if not asked["shape"] and path in earlier:
        known = earlier[path]
        return known._replace(pooling=known.pooling if node["pooling"] == "auto" else pooling, lora=node["lora"])
    shapes = asked["shapes"]
    if (Path(path).expanduser() / "config.json").is_file() and not asked["shape"]:
        config = body.loaded(lambda: AutoConfig.from_pretrained(Path(path).expanduser()), "model.path", path)
        pooling = body.pooling_of(str(Path(path).expanduser())) if node["pooling"] == "auto" else pooling
    elif asked["shape"] or name in shapes:
        shape = {**shapes.get(name, shapes["bert-base-uncased"]), **asked["shape"]}
        kind = shape.pop("model_type")
        config = AutoConfig.for_model(kind, **shape)
    else:
        try:
            config = AutoConfig.from_pretrained(body.checked_path(path, "model.path"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.path={path}: no model is there and plan.shapes has no {name!r}; give its keys, e.g. "
                f"'plan.shape={{hidden_size: 512, num_hidden_layers: 8, num_attention_heads: 8, "
                f"intermediate_size: 2048}}', or one of {', '.join(shapes)}"
            ) from error
    if node["dropout"] is not None:
        body.set_dropout(config, node["dropout"])
    return Encoder(config, pooling, node["lora"])


def encoding(cfg: Config, asked: Config, encoder: Encoder) -> tuple[Moments, int, int]:
    """Moments of embedding texts, and operations for a query and for a passage."""
    device = asked["devices"][asked["gpu"]]
    dtype = DTYPES[precision(cfg, device, 1)]
    setting = Setting(device.get("kind", "cuda"), dtype, False, asked["padding"])
    module = passes.bi_encoder(encoder, setting)
    query, passage = lengths(cfg, asked)
    found: list[tuple[Work, Pass]] = []
    for length in (query, passage):
        chunk = steps.work({length: steps.BLOCK}, cfg["chunk_tokens"])
        shape = max(chunk.chunks)
        found.append((Work({shape: 1}, 0), passes.encoded(module, setting, *shape, training=False)))
    size = passes.counts(module)
    weights = dtype.itemsize * (size.trained + size.frozen)
    works = [(work, partial(lambda each, _: each, each)) for work, each in found]
    held = [steps.encoding(weights, *each, encoder.config.hidden_size) for each in works]
    moments = max(held, key=lambda one: steps.peak(one)[1])
    query_flops, passage_flops = (each.forward_flops // max(work.chunks)[0] for work, each in found)
    return moments, query_flops, passage_flops
