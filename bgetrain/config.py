"""From command-line overrides to a checked config, without importing torch.

Top-level keys have the types and ranges of `Config`; a group's keys have those of the signature of its `_target_`.
Numbers live in YAML only: nothing here is a default.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bgetrain import overrides as grammar
from bgetrain import parts, rules, selection, trust
from bgetrain.selection import CONF, flatten, nearest
from bgetrain.target import fault, parse, signature

if TYPE_CHECKING:
    from bgetrain.types import NonNegativeInt, PositiveFloat, PositiveInt

# DeepSpeed's keys that a key of ours decides
OURS = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "chunk_tokens",
    "gradient_accumulation_steps": "chunk_tokens",
    "optimizer": "optim",
    "scheduler": "optim.warmup_ratio",
    "bf16": "precision",
    "fp16": "precision",
    "amp": "precision",
}
FAULTS = (HydraException, OmegaConfBaseException, ValueError)  # what composing raises; options may be odd values


@dataclass
class Config:
    """Types and ranges of the top-level keys; `conf/config.yaml` and `conf/stage/*.yaml` explain each one.

    The annotations are read as text: their names live in types.py, which imports torch.
    """

    output_dir: "str"
    seed: "NonNegativeInt"
    num_processes: "PositiveInt | None"
    resume: "Literal['auto', 'force', 'never']"
    cluster: "Mapping[str, Any]"
    logger: "Mapping[str, Any]"
    model: "Mapping[str, Any]"
    data: "Mapping[str, Any]"
    loss: "Mapping[str, Any]"
    optim: "Mapping[str, Any]"
    engine: "Mapping[str, Any]"
    stage: "Mapping[str, Any]"
    masking: "Mapping[str, Any]"
    documents: "Mapping[str, Any]"
    decoder: "str"
    mine: "Mapping[str, Any]"
    filter: "Mapping[str, Any]"
    evaluate: "Mapping[str, Any]"
    export: "Mapping[str, Any]"
    check: "Mapping[str, Any]"
    plan: "Mapping[str, Any]"
    split: "Mapping[str, Any]"
    search: "Mapping[str, Any]"
    embeddings_cache: "str | None"
    precision: "Literal['auto', 'fp32', 'bf16', 'fp16']"
    global_batch: "PositiveInt"
    group_size: "PositiveInt"
    chunk_tokens: "PositiveInt"
    step_mode: "Literal['auto', 'single', 'cached']"
    memory_limit: "PositiveFloat | None"
    guide_model: "str | None"
    total_steps: "PositiveInt | None"
    epochs: "PositiveFloat | None"
    length_buckets: "list[PositiveInt]"
    batch_tokens: "PositiveInt | None"
    num_workers: "NonNegativeInt"
    log_every: "PositiveInt"
    save_every: "PositiveInt"
    keep: "PositiveInt"
    save_async: "bool"
    on_nonfinite: "str"
    examples: "NonNegativeInt"
    preflight: "bool"
    format: "Literal['table', 'json']"
    runs: "list[str]"
    query: "str | list[str] | None"
    top_k: "PositiveInt"


def compose(overrides: Sequence[str], *, missing: bool = False) -> DictConfig:
    """Composes and checks the config that `overrides` select.

    Args:
        overrides: as typed, e.g. ["stage=finetune", "optim.lr=1e-5"].
        missing: let pass keys that have no value yet, for a page that shows them.

    Returns:
        The config, interpolations unresolved; every key in it is known, read by something, and of its type.

    Raises:
        ValueError: an unknown or missing key, a value of a wrong type or out of range; one line.
    """
    parsed = grammar.parse(overrides)
    for text in overrides:
        trust.check_references(text)
    grammar.single(parsed)
    selection.check_selections(parsed)
    for each in parsed:
        group, _, key = each.key_or_group.partition(".")
        if group == "engine" and key in OURS:
            raise ValueError(f"engine.{key} is set by bgetrain: use {OURS[key]}")
    try:
        complete = [opened(text, each, parsed) for text, each in zip(overrides, parsed, strict=True)]
        cfg = selection.fit_option(compose_unchecked(complete), parsed)
    except FAULTS as error:
        raise ValueError(selection.explain(error, parsed, known(parsed))) from error
    cfg = parts.expand(cfg)
    trust.check_targets(OmegaConf.to_container(cfg, resolve=False))  # before anything looks at the source of one
    for key, ours in OURS.items():
        if key in cfg.get("engine", {}):
            raise ValueError(f"engine.{key} is set by bgetrain: use {ours}")
    selection.check_keys(cfg, selected(parsed), parsed)
    selection.check_fit(cfg, parsed)
    unset = [key for key, value in flatten(cfg) if value == "???"]
    if unset and not missing:
        raise ValueError(f"{unset[0]} is missing: add {unset[0]}=VALUE{hint(cfg, unset[0], parsed)}")
    check(cfg)
    return cfg


def plain(overrides: Sequence[str], *, missing: bool = False) -> dict[str, Any]:
    """As `compose`, resolved, as mappings and lists."""
    found: Any = OmegaConf.to_container(compose(overrides, missing=missing), resolve=True)
    return dict(found)


def opened(text: str, each: Override, parsed: Sequence[Override]) -> str:
    """Spares the user Hydra's `+` inside mappings, whose keys are theirs: `data.columns={query: question}`."""
    text = grammar.as_text(text)
    plain = text[0] not in "+~"
    if plain and (isinstance(each.value(), dict) or selection.in_mapping(selected(parsed), each.key_or_group)):
        return f"++{text}"
    return text


def compose_unchecked(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))


def choices(overrides: Sequence[str]) -> dict[str, str]:
    """Group -> the option that `overrides` and the stage's own defaults choose."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
    return {str(group): str(option) for group, option in cfg.hydra.runtime.choices.items()}


@cache
def composed(selections: tuple[str, ...]) -> DictConfig:
    """What groups alone select, for comparison; not to be changed."""
    return selection.fit_option(compose_unchecked(selections), grammar.parse(selections))


def selected(parsed: Sequence[Override]) -> DictConfig:
    """The config of the options that were chosen, before any key was overridden."""
    return composed(tuple(str(each.input_line) for each in parsed if selection.is_selection(each)))


def known(parsed: Sequence[Override]) -> list[str]:
    """The keys that the chosen options have, none where they do not compose."""
    try:
        return [key for key, _ in flatten(selected(parsed))]
    except FAULTS:
        return []


def check(cfg: DictConfig) -> None:
    """Holds every key that has a value against its type and range, and keys against each other.

    Raises:
        ValueError: the first fault found; one line.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ValueError(f"{key + ': ' if key else ''}{str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    trust.check_targets(plain)  # again, for a reference may stand for a node
    types = {field.name: parse(str(field.type)) for field in fields(Config)}
    for key, value in plain.items():
        if key not in types:
            raise ValueError(f"nothing reads the key {key!r}{nearest(str(key), list(types))}")
        if value != "???":
            hold(str(key), value, types[str(key)])
    for group, node in plain.items():
        if isinstance(node, dict):
            check_group(str(group), node)
    whole = {str(key): value for key, value in plain.items()}
    parts.check(whole, check_group, rules.contrast)
    rules.across(whole)


def hint(cfg: DictConfig, key: str, parsed: Sequence[Override]) -> str:
    """What a missing key is: its kind, and what its option's YAML says first."""
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, group) or {}
    function = signature(node["_target_"]) if node.get("_target_") else None
    kind = fault(object(), function.parameters.get(name)) if function else None
    chosen = {each.key_or_group: each.value() for each in parsed if selection.is_selection(each)}
    texts = {path.stem: path.read_text("utf8") for path in sorted((CONF / group.partition(".")[0]).glob("*.yaml"))}
    known = {option: yaml.safe_load(text) for option, text in texts.items()}
    options = [each for each in known if known[each].get("_target_") == node.get("_target_") and known[each].get(name) == "???"]
    # several options may share a function: without a name the one that was meant agrees with the node in most
    options.sort(
        key=lambda each: (each == chosen.get(group), sum(node.get(k) == v for k, v in known[each].items())), reverse=True
    )
    heads = [texts[option].splitlines()[0].removeprefix("# ") for option in options]
    return "".join(f", {text}" for text in (kind,) if text) + "".join(f" ({text.rstrip('.')})" for text in heads[:1])


def check_group(group: str, node: dict[str, Any]) -> None:
    """Holds the keys of one node against the signature of its `_target_`; a node without one holds switches."""
    if node.get("_target_") is None:
        for key, value in node.items():
            if key != "_target_" and not isinstance(value, bool):
                raise ValueError(f"{group}.{key} must be true or false, got {value!r}")
        return
    function = signature(node["_target_"])
    for key, value in node.items():
        if function is None or key == "_target_" or group == "stage" or value == "???":
            continue
        if key in function.parameters:
            hold(f"{group}.{key}", value, function.parameters[key])
        elif not function.open_ended:
            raise ValueError(f"{group} has no key {key!r}{nearest(key, list(function.parameters))}")


def hold(name: str, value: Any, annotation: ast.expr | None) -> None:
    words = fault(value, annotation)
    if words:
        got = "null" if value is None else grammar.shortened(repr(value))
        quote = isinstance(value, int | float) and "text" in words.split(" or ")
        remedy = f"; quotes make it text: {grammar.in_shell(name, str(value))}" if quote else ""
        raise ValueError(f"{name} must be {words}, got {got}{remedy}")
