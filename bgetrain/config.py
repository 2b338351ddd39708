"""From command-line overrides to a checked config, without importing torch.

Top-level keys have the types and ranges of `Config`; a group's keys have those of the signature of its `_target_`.
Numbers live in YAML only: nothing here is a default.
"""

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bgetrain.target import fault, parse, signature

PACKAGE = Path(__file__).parent
CONF, RECIPES = (
    PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name  # in a wheel | in a checkout
    for name in ("conf", "recipes")
)


@dataclass
class Config:
    """Types and ranges of the top-level keys; `conf/config.yaml` and `conf/stage/*.yaml` explain each one."""

    output_dir: "str"
    seed: "NonNegativeInt"
    num_processes: "PositiveInt | None"
    resume: "Literal['auto', 'force', 'never']"
    precision: "Literal['auto', 'fp32', 'bf16', 'fp16']"
    global_batch: "PositiveInt"
    group_size: "PositiveInt"
    chunk_tokens: "PositiveInt"
    step_mode: "Literal['single', 'cached']"
    total_steps: "PositiveInt | None"
    epochs: "PositiveFloat | None"
    log_every: "PositiveInt"
    save_every: "PositiveInt"


def options(group: str) -> list[str]:
    """Names of `conf/<group>/*.yaml`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def groups() -> list[str]:
    """Names of the folders of `conf/`."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def compose(overrides: Sequence[str]) -> DictConfig:
    """Composes and checks the config that `overrides` select.

    Args:
        overrides: as typed, e.g. ["stage=finetune", "optim.lr=1e-5"].

    Returns:
        The resolved config; every key in it is known and of its type.

    Raises:
        ValueError: an unknown or missing key, a value of a wrong type or out of range; one line.
    """
    parsed = parse_overrides(overrides)
    if not any(each.key_or_group == "stage" for each in parsed):
        raise ValueError(f"stage is missing: add stage=NAME, one of {', '.join(options('stage'))}; or recipe=NAME")
    try:
        cfg = compose_unchecked(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, parsed)) from error
    check(cfg)
    return cfg


def compose_unchecked(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parses each override by Hydra's grammar.

    Raises:
        ValueError: an argument that is no `key=value`.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            raise ValueError(
                f"cannot read {text!r}: write key=value, with quotes around a value that has spaces or symbols, "
                f"e.g. data.query_instruction='\"find: \"'"
            ) from error
    return parsed


def explain(error: Exception, parsed: list[Override]) -> str:
    """Turns Hydra's complaint into one line with the nearest valid name."""
    for each in parsed:
        key, value = each.key_or_group, each.value()
        if key in groups() and not each.is_delete():
            for option in value if isinstance(value, list) else [value]:
                if option not in options(key):
                    return f"{key}={option}: conf/{key} has no {option!r}{nearest(str(option), options(key))}"
    selections = [each.input_line for each in parsed if each.key_or_group in groups() and each.input_line]
    try:
        known = [key for key, _ in flatten(compose_unchecked(selections))]
    except (HydraException, OmegaConfBaseException):
        known = []
    for each in parsed:
        key = each.key_or_group
        if known and not each.is_add() and key not in known:
            stage = next(other.value() for other in parsed if other.key_or_group == "stage")
            return f"stage={stage} has no key {key!r}{nearest(key, known, f'bgetrain stage={stage} --help')}"
    return re.sub(r"\s+", " ", str(error)).strip()


def nearest(name: str, known: Sequence[str], page: str | None = None) -> str:
    """`; did you mean ...?`; where nothing is near, all of `known`, or the page that lists them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if not close:  # a right key under a wrong or missing group
        close = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; `{page}` lists all" if page else f"; valid: {', '.join(known)}"


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key below `node`, dotted, groups included; unset ones have the value "???"."""
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    for key, value in plain.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, dict):
            yield from flatten(value, f"{name}.")


def check(cfg: DictConfig) -> None:
    """Holds every key against its type and range, and keys against each other.

    Raises:
        ValueError: the first fault found; one line.
    """
    for key, value in flatten(cfg):
        if value == "???":
            raise ValueError(f"{key} is missing: add {key}=VALUE{hint(cfg, key)}")
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(re.sub(r"\s+", " ", str(error)).strip()) from error
    assert isinstance(plain, dict)
    for field in fields(Config):
        if field.name in plain:
            hold(field.name, plain[field.name], parse(str(field.type)))
    for group, node in plain.items():
        if isinstance(node, dict):
            check_group(str(group), node)
    check_across(plain)


def hint(cfg: DictConfig, key: str) -> str:
    """The line of the YAML that explains a missing key, where it has a comment."""
    group = key.partition(".")[0]
    comments = [
        match[1]
        for path in (CONF / group).glob("*.yaml")
        if (match := re.search(rf"^{key.rpartition('.')[2]}: \?\?\?\s*# (.*)$", path.read_text("utf8"), re.M))
    ]
    return f" ({comments[0]})" if comments else ""


def check_group(group: str, node: dict[str, Any]) -> None:
    """Holds the keys of one node against the signature of its `_target_`; a node without one holds switches."""
    if node.get("_target_") is None:
        for key, value in node.items():
            if key == "_target_" or isinstance(value, bool | str):
                continue
            raise ValueError(f"{group}.{key} must be true or false, got {value!r}")
        return
    known = signature(node["_target_"])
    for key, value in node.items():
        if key in ("_target_", "name") and group == "stage":
            continue
        if known is None or key.startswith("_"):
            continue
        if key in known.parameters:
            hold(f"{group}.{key}", value, known.parameters[key])
        elif not known.open_ended:
            raise ValueError(f"{group} has no key {key!r}{nearest(key, list(known.parameters))}")


def hold(name: str, value: Any, annotation: ast.expr | None) -> None:
    words = fault(value, annotation)
    if words:
        raise ValueError(f"{name} must be {words}, got {'null' if value is None else repr(value)}")


def check_across(cfg: dict[str, Any]) -> None:
    """Rules that join keys of several groups."""
    if "total_steps" in cfg and cfg["total_steps"] is None and cfg["epochs"] is None:
        raise ValueError("total_steps and epochs are both null: set one of them")
    zero_stage = cfg.get("engine", {}).get("zero_optimization", {}).get("stage")
    if zero_stage == 0 and cfg["precision"] == "bf16":
        raise ValueError(
            "precision=bf16 with engine=zero0 would add up gradients in bf16, which loses most of them; use engine=zero1"
        )
    if "mine" in cfg and cfg["mine"]["first"] >= cfg["mine"]["last"]:
        raise ValueError(
            f"mine.first={cfg['mine']['first']} must be below mine.last={cfg['mine']['last']}: ranks count from 0, best first"
        )
