"""Recipes: an ordered mapping of step name to the overrides one would type, with `${step}` for that step's folder."""

import difflib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from bgetrain import chain, config, output, overrides, selection
from bgetrain.cluster.local import INTERRUPTED, complain, is_first, say
from bgetrain.steps import Step, done, note, outdated, report

OWN_KEYS = ("recipe", "dry_run", "from", "output_dir")
MOST, DEEPEST = 1000, 20  # overrides of a step, and lists within lists of them: a few lines of anchors make millions


def run(arguments: Sequence[str], run_stage: Callable[[Sequence[str]], int]) -> int:
    """Runs the steps of `recipe=NAME` that are not done, or submits them under SLURM; returns the exit status.

    Args:
        arguments: `recipe=NAME [dry_run=true] [from=STEP] [output_dir=PATH]` and overrides for every step that has the key.
        run_stage: runs one step and returns its exit status.

    Raises:
        ValueError: no such recipe or step, a step that does not compose, an override that fits no step, a step's folder
            that belongs to another config.
    """
    own, extras = split(arguments)
    name, folder = own["recipe"], folder_of(own)
    steps = plan(name, folder, extras)
    first_anew = start_again(steps, own.get("from"))
    dry_run = own.get("dry_run", "false").lower() == "true"
    if chain.is_wanted(steps):
        check_folders(steps[:first_anew], name)
        return chain.submit(Path(name).stem, folder, steps, first_anew, dry_run=dry_run)
    if dry_run:
        for number, step in enumerate(steps):
            print(shlex.join(["bgetrain", *step.overrides, *(["resume=never"] if number >= first_anew else [])]))
        return 0
    check_folders(steps[:first_anew], name)
    if is_first():
        note(folder, Path(name).stem, steps, {})
    began, ran = time.monotonic(), False
    for number, step in enumerate(steps):
        say(f"[{number + 1}/{len(steps)}] {step.name}")
        anew = number >= first_anew or outdated(step, steps)
        was_done = not anew and done(step)
        status = run_stage([*step.overrides, *(["resume=never"] if anew else [])])
        if status == INTERRUPTED and "from" in own:
            complain(f"leave out from={own['from']} to go on, or it starts again there")
        if status:
            return status
        ran = ran or not was_done
    if is_first():
        report(Path(name).stem, folder, steps, time.monotonic() - began if ran else None)
    return 0


def folder_of(own: dict[str, str]) -> str:
    """The folder of a recipe's outputs: `output_dir`, or outputs/NAME.

    Raises:
        ValueError: a path that cannot stand inside an override.
    """
    folder = own.get("output_dir", f"outputs/{Path(own['recipe']).stem}")
    value = overrides.value_of(f"output_dir={folder}")
    if not isinstance(value, str) or not re.fullmatch(r"[\w./~+@-]([\w./~+@ -]*[\w./~+@-])?", value, re.ASCII):
        raise ValueError(
            f"output_dir={folder}: give a path of letters, digits and . _ - / alone, for the steps' overrides hold it"
        )
    return os.path.expanduser(value)


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Parts the recipe's own keys from the overrides for its steps."""
    own: dict[str, str] = {}
    extras: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own and key in OWN_KEYS:
            raise ValueError(f"{key}={own[key]} and {argument}: give {key} once")
        if key in OWN_KEYS:
            own[key] = value
        elif key == "stage":
            raise ValueError(f"{argument} beside recipe={own.get('recipe', '...')}: give one of the two")
        else:
            extras.append(argument)
    if own.get("dry_run", "false").lower() not in ("true", "false"):
        raise ValueError(f"dry_run must be true or false, got {own['dry_run']!r}")
    return own, extras


def load(name: str) -> dict[str, list[str]]:
    """Reads a recipe by its name in recipes/ or by the path of a YAML file.

    Raises:
        ValueError: no such recipe, or it is no mapping of step to list of overrides.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else selection.RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in selection.RECIPES.glob("*.yaml"))
        where = "no such file" if path.name == name or "/" in name else "there is no such recipe"
        raise ValueError(f"recipe={name}: {where}{selection.nearest(path.stem, known)}")
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
    found = {str(step): list(islice(flat(path, str(step), each, 0), MOST + 1)) for step, each in steps.items()}
    for step, listed in found.items():
        if len(listed) > MOST:
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


def plan(name: str, folder: str, extras: Sequence[str]) -> list[Step]:
    """Completes every step and checks that it composes, before the first one runs."""
    recipe = load(name)
    folders = {step: f"{folder}/{step}" for step in recipe}
    keys = {extra: parsed.key_or_group for extra, parsed in zip(extras, overrides.parse(extras), strict=True)}
    chosen = [extra for extra, key in keys.items() if key == "cluster"]
    unused, known_anywhere = dict(keys), dict.fromkeys(OWN_KEYS)
    steps: list[Step] = []
    for step, listed in recipe.items():
        try:
            own = [substitute(each, folders, [earlier.name for earlier in steps]) for each in listed]
            complete = [*fit_cluster(own, chosen), overrides.quoted("output_dir", folders[step])]
            cfg = chain.composed((*complete, *chosen))
            known = dict.fromkeys(key for key, _ in selection.flatten(cfg))
            added = [extra for extra, key in keys.items() if fits(extra, key, known) or selection.in_mapping(cfg, key)]
            if added:
                complete[-1:-1] = added
            chain.composed(tuple(complete))
        except ValueError as error:
            raise ValueError(f"recipe={name}, step {step}: {error}") from error
        known_anywhere |= known
        unused = {extra: key for extra, key in unused.items() if extra not in added}
        needs = [other for other in recipe if any(f"${{{other}}}" in each for each in listed)]
        steps.append(Step(step, complete, folders[step], needs))
    for key in unused.values():
        has = [option for option, known in cluster_keys().items() if key.startswith("cluster.") and key.split(".")[1] in known]
        if has:
            raise ValueError(f"recipe={name}: {key} is a key of cluster={' and cluster='.join(has)}: add that")
        near = selection.nearest(key, list(known_anywhere), "bgetrain stage=NAME --help")
        raise ValueError(f"recipe={name}: no step has a key {key!r}{near}")
    return steps


def fits(extra: str, key: str, known: dict[str, None]) -> bool:
    """Whether a step with the keys `known` takes an extra override; `+engine.x=1` goes where there is an engine."""
    return key in known or (extra.startswith("+") and "." in key and key.partition(".")[0] in known)


def fit_cluster(listed: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Leaves out what a step says of clusters that are not the chosen one: sizes of jobs are of no use to one machine.

    Args:
        listed: overrides of a step.
        chosen: `cluster=NAME` of the command line, which wins over the step's; or nothing.

    Raises:
        ValueError: a key that no cluster has.
    """
    keys = [each.key_or_group for each in overrides.parse(listed)]
    kept = [each for each, key in zip(listed, keys, strict=True) if not (key == "cluster" and chosen)]
    sizes = {each: key.split(".")[1] for each, key in zip(listed, keys, strict=True) if key.startswith("cluster.")}
    if not sizes:
        return kept
    known = cluster_keys()
    for each, key in sizes.items():
        if not any(key in keys for keys in known.values()):
            near = selection.nearest(f"cluster.{key}", [f"cluster.{key}" for keys in known.values() for key in keys])
            raise ValueError(f"{each}: conf/cluster has no key {key!r}{near}")
    option = cluster_of(tuple([*(each for each in kept if each not in sizes), *chosen]))
    return [each for each in kept if each not in sizes or sizes[each] in known.get(option, ())]


@cache
def cluster_of(listed: tuple[str, ...]) -> str:
    """The option of `conf/cluster` that overrides choose; "" where they do not compose, which is said better later."""
    try:
        return config.choices(listed)["cluster"]
    except config.FAULTS:
        return ""


def cluster_keys() -> dict[str, list[str]]:
    """The options of `conf/cluster` with their keys."""
    paths = {option: selection.CONF / "cluster" / f"{option}.yaml" for option in selection.options("cluster")}
    return {option: list(yaml.safe_load(path.read_text("utf8"))) for option, path in paths.items()}


def substitute(override: str, folders: dict[str, str], earlier: Sequence[str]) -> str:
    """Puts the folders of earlier steps for `${step}`; references to keys of the config are Hydra's and stay.

    Raises:
        ValueError: a reference to a step that comes later or not at all.
    """
    for name in re.findall(r"\$\{([\w-]+)\}", override):
        if name in folders and name not in earlier:
            raise ValueError(f"{override}: step {name} has not run when this one does; put it before")
        if name not in folders and name not in config.Config.__annotations__:
            raise ValueError(f"{override}: there is no step {name!r}{selection.nearest(name, list(earlier))}")
    return re.sub(r"\$\{([\w-]+)\}", lambda match: folders.get(match[1], match[0]), override)


def start_again(steps: Sequence[Step], name: str | None) -> int:
    """The number of the step from which all run anew; past the last where none is asked for."""
    if name is None:
        return len(steps)
    names = [step.name for step in steps]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        asked = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"from={name}: the recipe has no such step{asked} (its steps: {', '.join(names)})")
    return names.index(name)


def check_folders(steps: Sequence[Step], name: str) -> None:
    """Refuses, before anything runs, folders that hold a run of other values.

    Raises:
        ValueError: the first such folder, with the ways out.
    """
    for step in steps:
        try:
            output.standing(chain.composed(tuple(step.overrides)))
        except ValueError as error:
            told = str(error).partition(": choose another")[0]
            ways = f"choose another output_dir, or from={step.name} to start again there"
            raise ValueError(f"recipe={name}, step {step.name}: {told}: {ways}") from error
