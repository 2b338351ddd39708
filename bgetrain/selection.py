"""What one may choose and override: the options of `conf/`, the keys of a stage, and the nearest name to a wrong one."""

import ast
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from bgetrain.target import MAPPINGS, signature

PACKAGE = Path(__file__).parent
CONF, RECIPES = (
    PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name  # in a wheel | in a checkout
    for name in ("conf", "recipes")
)


@cache
def options(group: str) -> list[str]:
    """Names of `conf/<group>/*.yaml`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def groups() -> list[str]:
    """Names of the folders of `conf/`."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def is_selection(each: Override) -> bool:
    """Whether it chooses an option of a group, rather than set a key."""
    return each.key_or_group in groups() and not isinstance(each.value(), dict) and not each.is_delete()


def check_selections(parsed: Sequence[Override]) -> None:
    """Holds each GROUP=OPTION against the files of `conf/`, before anything is composed.

    Raises:
        ValueError: no stage, two stages, an option that does not exist, keys that are Hydra's own.
    """
    stages = [each for each in parsed if each.key_or_group == "stage"]
    if not stages:
        raise ValueError(f"stage is missing: add stage=NAME, one of {', '.join(options('stage'))}; or recipe=NAME")
    if len(stages) > 1:
        raise ValueError(f"{' and '.join(str(each.input_line) for each in stages)}: one command runs one stage, give one of them")
    for each in parsed:
        key = each.key_or_group
        if "hydra" in (re.split(r"[./]", key)[0], re.split(r"[./]", each.package or "")[0]):
            raise ValueError(f"{key} has no effect: outputs go to output_dir, and -m runs its jobs one after the other")
        if key.startswith("stage."):
            raise ValueError(f"{key} cannot be set: it belongs to the stage; choose another by stage=NAME")
        if is_selection(each) and each.value() not in options(key):
            given = str(each.input_line).partition("=")[2]
            near = f"; a path goes in {key}.path={given}" if "/" in given else nearest(given, options(key))
            raise ValueError(f"{key}={given}: conf/{key} has no option {given!r}{near}")


def explain(error: Exception, parsed: Sequence[Override], known: Sequence[str]) -> str:
    """Turns Hydra's complaint into one line with the nearest valid name.

    Args:
        error: Hydra's.
        parsed: the overrides it is about.
        known: keys of the chosen options; none where these do not compose.
    """
    for each in parsed:
        key = each.key_or_group
        # the sources of a mixture are named by the user: Hydra takes any, and it is another key that it complains of
        of_mixture = key.startswith("data.sources.") and "data.sources" in known
        if known and not each.is_add() and not each.is_force_add() and key not in known and not of_mixture:
            return unknown(key, known, parsed)
        if each.is_add() and key in known:
            return f"{each.input_line}: {key} is there already, write it without +"
    return re.sub(r"\s+", " ", str(error)).strip()


def unknown(key: str, known: Sequence[str], parsed: Sequence[Override]) -> str:
    """Says that the chosen stage has no such key."""
    stage = next(each.value() for each in parsed if each.key_or_group == "stage")
    if key == "from":
        return f"stage={stage} has no key {key!r}: it goes with recipe=NAME"
    return f"stage={stage} has no key {key!r}{nearest(key, known, f'bgetrain stage={stage} --help')}"


def nearest(name: str, known: Sequence[str], page: str | None = None) -> str:
    """`; did you mean ...?`; where nothing is near, all of `known`, or the page that lists them."""
    known = [key for key in known if not key.endswith("_target_") and not key.startswith("stage.")]
    close = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]  # right, under a wrong group
    if not close:
        alike = {key: difflib.SequenceMatcher(None, name, key).ratio() for key in known}
        best = max(alike.values(), default=0.0)
        close = sorted((key for key in known if alike[key] >= max(0.6, best - 0.07)), key=lambda key: -alike[key])[:3]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; `{page}` lists all" if page else f"; valid: {', '.join(known)}"


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key below `node`, dotted, groups included; unset ones have the value "???"."""
    plain: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    for key, value in plain.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, dict):
            yield from flatten(value, f"{name}.")


def fit_option(cfg: DictConfig, parsed: Sequence[Override]) -> DictConfig:
    """Takes away what a stage says of its own options where the user has chosen others that have no such key.

    `stage=finetune` has a `model.path`, which is of no use to `model=tiny`.

    Args:
        cfg: as Hydra composes it; changed.
        parsed: the overrides.
    """
    typed = {each.key_or_group for each in parsed}
    own = yaml.safe_load((CONF / "stage" / f"{cfg.stage.name}.yaml").read_text("utf8"))
    OmegaConf.set_struct(cfg, False)
    for each in parsed:
        group = each.key_or_group
        if not is_selection(each) or group == "stage" or group not in own:
            continue
        option = yaml.safe_load((CONF / group / f"{each.value()}.yaml").read_text("utf8"))
        for key in own[group]:
            if key not in option and f"{group}.{key}" not in typed:
                cfg[group].pop(key, None)
    OmegaConf.set_struct(cfg, True)
    return cfg


def check_keys(cfg: DictConfig, before: DictConfig, parsed: Sequence[Override]) -> None:
    """Refuses what was added and nothing reads, and what `~` removed and something reads.

    Args:
        cfg: with all overrides.
        before: with the chosen options alone.
        parsed: the overrides.

    Raises:
        ValueError: such a key.
    """
    chosen = [str(each.input_line) for each in parsed if is_selection(each)]
    now, known = dict(flatten(cfg)), dict(flatten(before))
    stage = before.stage.name
    for key in [*now, *known]:
        if (key in now) == (key in known) or is_free(cfg if key in now else before, key):
            continue
        if key in now:
            near = nearest(key, list(known), f"bgetrain stage={stage} --help")
            raise ValueError(f"nothing reads {key} in {' '.join(chosen)}{near}")
        raise ValueError(f"~{key}: stage={stage} reads this key, so it cannot be taken away: set it to a value")


def is_free(cfg: DictConfig, key: str) -> bool:
    """Whether a node may have `key` or not: DeepSpeed's own keys, and those inside mappings such as data.columns."""
    group, _, rest = key.partition(".")
    node = cfg.get(group)
    if not rest or not isinstance(node, DictConfig) or not node.get("_target_"):
        return False
    known = signature(node["_target_"])
    if known is None or rest.partition(".")[0] not in known.parameters:
        return known is None or known.open_ended
    return in_mapping(cfg, key)


def is_mapping(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation).split("[")[0] in MAPPINGS


def in_mapping(cfg: Mapping[str, Any] | DictConfig, key: str) -> bool:
    """Whether `key` stands inside a mapping whose keys are the user's, such as data.columns.query."""
    group, _, rest = key.partition(".")
    target = (cfg.get(group) or {}).get("_target_") if "." in rest else None
    known = signature(target) if target else None
    return known is not None and is_mapping(known.parameters.get(rest.partition(".")[0]))


def check_fit(cfg: DictConfig, parsed: Sequence[Override]) -> None:
    """Refuses an option whose function takes other tensors than those that the stage hands over.

    Args:
        cfg: with all overrides.
        parsed: the overrides.

    Raises:
        ValueError: such an option.
    """
    for each in parsed:
        group = each.key_or_group
        own = own_option(cfg.stage.name, group) if is_selection(each) and group != "stage" else {}
        if not own.get("_target_") or not cfg[group].get("_target_"):
            continue
        gives, takes = handed_over(own), handed_over(cfg[group])
        if gives is not None and takes is not None and len(gives) != len(takes):
            raise ValueError(
                f"{each.input_line} does not fit stage={cfg.stage.name}: it takes {', '.join(takes) or 'nothing'}, "
                f"where the stage gives {', '.join(gives) or 'nothing'}"
            )


def own_option(stage: str, group: str) -> dict[str, Any]:
    """What the option holds that a stage chooses itself; nothing where it has none."""
    for each in yaml.safe_load((CONF / "stage" / f"{stage}.yaml").read_text("utf8"))["defaults"]:
        if isinstance(each, dict) and f"/{group}" in each:
            return dict(yaml.safe_load((CONF / group / f"{each[f'/{group}']}.yaml").read_text("utf8")))
    return {}


def handed_over(node: Mapping[str, Any] | DictConfig) -> list[str] | None:
    """What the caller gives to a node's function beside the node's keys; None where the source does not tell."""
    known = signature(node["_target_"])
    return None if known is None else [name for name in known.positional if name not in list(node)]
