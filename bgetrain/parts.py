"""The sources of a mixture in a config: `data: OPTION` becomes that option's keys, and each is checked as if chosen alone."""

from collections.abc import Callable, Mapping
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from bgetrain.selection import CONF, nearest, options
from bgetrain.target import fault, signature

PART = "bgetrain.data.mixture.part"
MIXTURE = "bgetrain.data.mixture.mixture"
SHARED = ("query_max_len", "passage_max_len", "query_instruction", "missing_negatives", "split", "on_bad_row")


def sources(cfg: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """Name -> keys of the parts of a config's mixture; none where its data is one source."""
    data = cfg.get("data") or {}
    found = data.get("sources") if data.get("_target_") == MIXTURE else None
    return dict(found) if isinstance(found, Mapping | DictConfig) else {}


def expand(cfg: DictConfig) -> DictConfig:
    """Writes into every source of a mixture the keys of the option that it names.

    What the mixture says of all sources takes the place of what the option has; what a source says wins over both.

    Args:
        cfg: as composed; changed.

    Raises:
        ValueError: a source that names no option, or one that does not exist.
    """
    if (cfg.get("data") or {}).get("sources") == {}:
        raise ValueError("data.sources={} is empty: name at least one source, e.g. {a: {data: jsonl, files: [a.jsonl]}}")
    if not sources(cfg):
        return cfg
    data: Any = OmegaConf.to_container(cfg.data, resolve=False)
    common = {key: data[key] for key in SHARED if data.get(key) is not None}
    for name, node in data["sources"].items():
        option = node.pop("data", None) if isinstance(node, dict) else None
        if isinstance(node, dict) and "_target_" in node and option is None:
            continue
        if not isinstance(option, str):
            raise ValueError(f"data.sources.{name} must say which data it is, e.g. {{data: jsonl, files: [a.jsonl]}}, got {node}")
        if option not in options("data") or option == "mixture":
            raise ValueError(f"data.sources.{name}.data={option}: no such option{nearest(option, options('data'))}")
        base = yaml.safe_load((CONF / "data" / f"{option}.yaml").read_text("utf8"))
        if base["_target_"] == MIXTURE:
            raise ValueError(f"data.sources.{name}.data={option} is a mixture itself: name its sources instead")
        data["sources"][name] = {**base, **{key: value for key, value in common.items() if key in base}, **node}
    OmegaConf.set_struct(cfg, False)
    cfg.data = OmegaConf.create(data)
    OmegaConf.set_struct(cfg, True)
    return cfg


def check(cfg: dict[str, Any], check_group: Callable[[str, dict[str, Any]], None], check_loss: Callable[..., None]) -> None:
    """Holds each part's keys against its option, the parts of a mixture and the loss.

    Args:
        cfg: plain and complete.
        check_group: (name for messages, node) -> holds a node against its `_target_`.
        check_loss: (config, loss) -> holds a contrastive loss against the other keys.

    Raises:
        ValueError: the first fault found; one line.
    """
    known = signature(PART)
    assert known is not None
    own = {key: known.parameters[key] for key in known.parameters if key != "name"}
    for name, node in sources(cfg).items():
        place = f"data.sources.{name}"
        function = signature(node["_target_"])
        for key in node:
            if function is not None and key not in own and key != "_target_" and key not in function.parameters:
                raise ValueError(f"{place} has no key {key!r}{nearest(key, [*own, *function.parameters])}")
        check_group(place, {key: value for key, value in node.items() if key not in own})
        for key in own:
            words = fault(node[key], own[key]) if key in node else None
            if words:
                raise ValueError(f"{place}.{key} must be {words}, got {node[key]!r}")
        loss, size = node.get("loss") or {}, node.get("group_size")
        if not loss and not size:
            continue
        if "guide_model" not in cfg:
            if "total_steps" not in cfg:
                continue  # stages that do not train take the mixture of one that does as it is
            raise ValueError(f"{place} has loss or group_size, which stage={cfg['stage']['name']} does not read")
        if "learnable_temperature" in loss:
            raise ValueError(f"{place}.loss.learnable_temperature: all sources share it, set loss.learnable_temperature")
        if loss and cfg["data"]["batches"] == "mixed":
            raise ValueError(f"{place}.loss needs batches of that source alone: set data.batches=source")
        merged = {**cfg["loss"], **loss}
        try:
            check_group("loss", merged)
            check_loss({**cfg, "group_size": size or cfg["group_size"]}, merged)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
