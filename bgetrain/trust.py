"""What a config from elsewhere may do, and what of a config nobody else may read.

A recipe or an override of a stranger can name neither code outside bgetrain nor the environment; secrets that the user gives
stay out of what is written and shown.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from bgetrain.selection import CONF, groups

ALLOW = "BGETRAIN_ALLOW"  # packages beside bgetrain whose functions a config may name; no config can set it
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
REFERENCE = re.compile(r"\$\{(?![\w.-]+\})")  # what is no ${key}: `oc.env`, `oc.decode` and other resolvers, and nested ones
# hidden wherever their values turn up
ENVIRONMENT = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
SHORTEST = 8  # letters of a secret: a shorter one would hide words that are none
HIDDEN = "***"
SECRET_WORDS = ("key", "apikey", "token", "secret", "password", "passwd", "credential", "credentials")
NAMES = "|".join(SECRET_WORDS[1:])  # "key" alone is a word of many meanings in a line
VALUE = r"""("[^"]*"|'[^']*'|[^\s'",;)}]+)"""
IN_TEXT = (
    (re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"), HIDDEN),  # https://user:password@host
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), HIDDEN),
    (re.compile(rf"(?i)([._-]key=|\b(?:\w+[._-])*(?:{NAMES})=){VALUE}"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)([{{,]\s*['\"]?(?:\w+[._-])*(?:key|{NAMES})['\"]?: *){VALUE}"), rf"\1{HIDDEN}"),
)


def check_references(text: str) -> None:
    """Refuses an override that refers to anything but keys of the config.

    Raises:
        ValueError: a resolver such as `${oc.env:HOME}`, which would carry the environment into what is saved.
    """
    found = REFERENCE.search(text)
    if found and ":" in text[found.start() :]:
        shown = text[found.start() :].partition("}")[0]
        raise ValueError(
            f"{text.partition('=')[0]}: {shown}}} is not filled in: references are to keys of the config, such as ${{seed}}; "
            f"on the command line the shell fills in $NAME"
        )


def check_targets(cfg: Any) -> None:
    """Refuses a config that names code which it may not name; nothing is imported.

    Each `_target_` must be one that `conf/` names at that place, or begin with a prefix in the environment's BGETRAIN_ALLOW.

    Args:
        cfg: plain, whole.

    Raises:
        ValueError: the first such `_target_`.
    """
    for place, target in targets(cfg):
        if target is None:
            continue
        if isinstance(target, str) and DOTTED.fullmatch(target):
            if target.startswith(allowed()):
                continue
            if target in own(place.removesuffix("._target_")):
                continue
            if not target.startswith("bgetrain."):
                raise ValueError(
                    f"{place}={target}: a config may name functions of bgetrain alone; to allow those of a package that you "
                    f"trust, set the environment variable {ALLOW}={target.partition('.')[0]}."
                )
        raise ValueError(f"{place}={target}: is not a function that can stand here; choose an option of conf/")


def targets(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every `_target_` with its dotted place, in mappings and lists alike."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        if key == "_target_":
            yield f"{prefix}{key}", value
        else:
            yield from targets(value, f"{prefix}{key}.")


@cache
def own(place: str) -> frozenset[str]:
    """The functions that `conf/` names at a place: a group's options for the group, a stage's nodes for their key."""
    group = "data" if re.fullmatch(r"data\.sources\.[^.]+", place) else place
    if group in groups() and group != "stage":
        texts = [path.read_text("utf8") for path in (CONF / group).glob("*.yaml")]
        return frozenset(found for text in texts for found in re.findall(r"^_target_: *([\w.]+)", text, re.M))
    stages = [yaml.safe_load(path.read_text("utf8")) for path in (CONF / "stage").glob("*.yaml")]
    nodes = [stage.get(place) for stage in stages]
    return frozenset(str(node["_target_"]) for node in nodes if isinstance(node, dict) and node.get("_target_"))


def allowed() -> tuple[str, ...]:
    """Prefixes, beside bgetrain's own functions, that the user trusts: `mypackage.` and the like, separated by commas."""
    listed = [each.strip().rstrip(".") for each in os.environ.get(ALLOW, "").split(",")]
    return tuple(f"{each}." for each in listed if each)


def masked(cfg: Any, key: str = "") -> Any:
    """A config with its secrets hidden, for whatever is written or shown.

    Hidden are values of keys whose last word is key, token, secret or password, those of the environment's tokens, and
    the name and password in addresses.

    Args:
        cfg: plain; not changed.
        key: under which it stands.
    """
    secret = re.split(r"[._-]", key.lower())[-1] in SECRET_WORDS
    if secret and cfg not in (None, "", "???", {}, []) and not isinstance(cfg, bool):
        return HIDDEN
    if isinstance(cfg, Mapping):
        return {name: masked(value, str(name)) for name, value in cfg.items()}
    if isinstance(cfg, list | tuple):
        return [masked(each, key) for each in cfg]
    return masked_text(cfg) if isinstance(cfg, str) else cfg


def secrets(cfg: Any, place: str = "") -> Iterator[str]:
    """The dotted keys whose values `masked` hides."""
    if isinstance(cfg, Mapping):
        for name, value in cfg.items():
            where = f"{place}.{name}" if place else str(name)
            if masked({name: value}) != {name: value}:
                deeper = list(secrets(value, where))
                yield from deeper or [where]
    elif isinstance(cfg, list | tuple) and masked(cfg) != cfg:
        yield place


def masked_text(text: str) -> str:
    """A line with its secrets hidden."""
    for value in (os.environ.get(name, "") for name in ENVIRONMENT):
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    for pattern, instead in IN_TEXT:
        text = pattern.sub(instead, text)
    return text
