"""The YAML of a recipe: steps in their order, each a list of overrides; `like: NAME` takes over those of another recipe."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from bgetrain import selection

LIKE = "like"  # the key that names the recipe to take over
MOST, DEEPEST = 1000, 20  # overrides of a step, and lists within lists of them: a few lines of anchors make millions


def load(name: str) -> dict[str, list[str]]:
    """Reads a recipe by its name in recipes/ or by the path of a YAML file.

    A recipe that begins with `like: NAME` has the steps of that one, which is read beside it, then from recipes/; what it
    lists under a step takes the place of the values that this step has there.

    Raises:
        ValueError: no such recipe, it is no mapping of step to list of overrides, or what it is like has no such step.
    """
    return grown(name, path_of(name), ())


def grown(name: str, path: Path, younger: tuple[Path, ...]) -> dict[str, list[str]]:
    """Reads one file, and before it the one that it is like; `younger` are the files that are like this one."""
    if not path.is_file():
        known = sorted(each.stem for each in selection.RECIPES.glob("*.yaml"))
        where = "no such file" if path.name == name or "/" in name else "there is no such recipe"
        asked = f"{younger[-1]}: {LIKE}: {name}" if younger else f"recipe={name}"
        raise ValueError(f"{asked}: {where}{selection.nearest(path.stem, known)}")
    steps = read(path)
    older = steps.pop(LIKE, None)
    found = {step: overrides_of(path, step, each) for step, each in steps.items()}
    if older is None:
        return found
    if not isinstance(older, str) or path in younger:
        raise ValueError(f"{path}: {LIKE} must name another recipe, which is not like this one, got {older!r}")
    beside = path.with_name(f"{older}.yaml")
    whole = grown(older, beside if beside.is_file() else path_of(older), (*younger, path))
    for step, changes in found.items():
        if step not in whole:
            raise ValueError(f"{path}: {older} has no step {step!r}{selection.nearest(step, list(whole))}")
        whole[step] = changed(path, step, whole[step], changes)
    return whole


def changed(path: Path, step: str, listed: list[str], changes: list[str]) -> list[str]:
    """A step's overrides with other values at the places of their keys.

    Raises:
        ValueError: a change of a key that the step does not list: it would be easy to mistype, and hides where a number is.
    """
    values = {change.partition("=")[0]: change for change in changes}
    keys = [each.partition("=")[0] for each in listed]
    for key in values:
        if key not in keys:
            raise ValueError(f"{path}: step {step!r} has no {key!r} to change{selection.nearest(key, keys)}")
    return [values.get(key, each) for key, each in zip(keys, listed, strict=True)]


def path_of(name: str) -> Path:
    return Path(name) if name.endswith((".yaml", ".yml")) else selection.RECIPES / f"{name}.yaml"


def read(path: Path) -> dict[str, Any]:
    """The mapping in a file, its steps named as folders can be."""
    try:
        steps = yaml.safe_load(path.read_text("utf8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # a date that is none, lists within lists without end
        raise ValueError(f"{path}: not YAML that can be read: {error}") from error
    if not isinstance(steps, dict) or not steps:
        raise ValueError(f"{path}: a recipe maps step names to lists of overrides, got {type(steps).__name__}")
    for step in steps:
        if not re.fullmatch(r"[\w-]+", str(step), re.ASCII):
            raise ValueError(f"{path}: step {step!r} must be named by letters, digits, - and _ alone: it names a folder")
    return {str(step): listed for step, listed in steps.items()}


def overrides_of(path: Path, step: str, listed: Any) -> list[str]:
    found = list(islice(flat(path, step, listed, 0), MOST + 1))
    if len(found) > MOST:
        raise ValueError(f"{path}: step {step!r} has more than {MOST} overrides, by anchors in anchors")
    return found


def flat(path: Path, step: str, listed: Any, depth: int) -> Iterator[str]:
    """Flattens lists in lists, which YAML anchors make of shared overrides."""
    if depth > DEEPEST:
        raise ValueError(f"{path}: step {step!r} has lists within lists more than {DEEPEST} deep, or an anchor inside itself")
    if not isinstance(listed, list):
        raise ValueError(f"{path}: step {step!r} must be a list of overrides such as [stage=pairs, epochs=1]")
    for each in listed:
        if isinstance(each, list):
            yield from flat(path, step, each, depth + 1)
        elif isinstance(each, str):
            yield each
        else:
            raise ValueError(f"{path}: step {step!r}: {each!r} is no override: write key=value, in quotes where YAML needs them")
