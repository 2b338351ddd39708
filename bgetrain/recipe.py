"""Recipes: an ordered mapping of step name to the overrides one would type, with `${step}` for that step's folder."""

import difflib
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bgetrain import config, output

OWN_KEYS = ("recipe", "dry_run", "from", "output_dir")
RUNG = "evaluate-"  # steps whose name begins so are the rungs of the ladder


class Step(NamedTuple):
    """One step, ready to run.

    Attributes:
        overrides: complete; as a command line they do the same.
        output_dir: where its outputs go.
        needs: names of the steps whose folders it reads.
    """

    name: str
    overrides: list[str]
    output_dir: str
    needs: list[str]


def run(arguments: Sequence[str], run_stage: Callable[[Sequence[str]], int]) -> int:
    """Runs the steps of `recipe=NAME` that are not done; returns the exit status.

    Args:
        arguments: `recipe=NAME [dry_run=true] [from=STEP] [output_dir=PATH]` and overrides for every step that has the key.
        run_stage: runs one step and returns its exit status.

    Raises:
        ValueError: no such recipe or step, a step that does not compose, an override that fits no step.
    """
    own, extras = split(arguments)
    name = own["recipe"]
    folder = own.get("output_dir", f"outputs/{Path(name).stem}")
    steps = plan(name, folder, extras)
    if own.get("dry_run", "false").lower() == "true":
        for step in steps:
            print(shlex.join(["bgetrain", *step.overrides]))
        return 0
    first_anew = start_again(steps, own.get("from"))
    began, ran = time.monotonic(), set()
    for number, step in enumerate(steps):
        stale = number >= first_anew or bool(ran & set(step.needs))
        anew = ["resume=never"] if stale else []
        print(f"[{number + 1}/{len(steps)}] {step.name}", flush=True)
        was_done = not stale and (Path(step.output_dir) / "result.json").exists()
        status = run_stage([*step.overrides, *anew])
        if status:
            return status
        if not was_done:
            ran.add(step.name)
    report(Path(name).stem, folder, steps, time.monotonic() - began)
    return 0


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Parts the recipe's own keys from the overrides for its steps."""
    own, extras = {}, []
    for argument in arguments:
        key, _, value = argument.partition("=")
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
    path = Path(name) if name.endswith((".yaml", ".yml")) else config.RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in config.RECIPES.glob("*.yaml"))
        raise ValueError(f"recipe={name}: there is no {path.name}{config.nearest(name, known)}")
    try:
        steps = yaml.safe_load(path.read_text("utf8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(steps, dict) or not steps:
        raise ValueError(f"{path}: a recipe maps step names to lists of overrides, got {type(steps).__name__}")
    return {str(step): list(flat(path, step, overrides)) for step, overrides in steps.items()}


def flat(path: Path, step: str, overrides: Any) -> Iterator[str]:
    """Flattens lists in lists, which YAML anchors make of shared overrides."""
    if not isinstance(overrides, list):
        raise ValueError(f"{path}: step {step!r} must be a list of overrides such as [stage=pairs, epochs=1]")
    for each in overrides:
        if isinstance(each, list):
            yield from flat(path, step, each)
        else:
            yield str(each)


def plan(name: str, folder: str, extras: Sequence[str]) -> list[Step]:
    """Completes every step and checks that it composes, before the first one runs."""
    recipe = load(name)
    folders = {step: f"{folder}/{step}" for step in recipe}
    fits = {extra: False for extra in extras}
    known_anywhere: dict[str, None] = {}
    steps = []
    for step, overrides in recipe.items():
        needs = [other for other in recipe if any(f"${{{other}}}" in each for each in overrides)]
        own = [substitute(each, folders) for each in overrides]
        try:
            known = dict.fromkeys(key for key, _ in config.flatten(config.compose([*own, f"output_dir={folders[step]}"])))
            known_anywhere |= known
            added = [extra for extra in extras if config.parse_overrides([extra])[0].key_or_group in known or extra[0] in "+~"]
            complete = [*own, *added, f"output_dir={folders[step]}"]
            config.compose(complete)
        except ValueError as error:
            raise ValueError(f"recipe={name}, step {step}: {error}") from error
        fits |= dict.fromkeys(added, True)
        steps.append(Step(step, complete, folders[step], needs))
    for extra, used in fits.items():
        if not used:
            key = extra.partition("=")[0]
            raise ValueError(f"recipe={name}: no step has a key {key!r}{config.nearest(key, list(known_anywhere))}")
    return steps


def substitute(override: str, folders: dict[str, str]) -> str:
    """Puts the folders of other steps for `${step}`; other interpolations are Hydra's and stay."""
    return re.sub(r"\$\{([\w-]+)\}", lambda match: folders.get(match[1], match[0]), override)


def start_again(steps: Sequence[Step], name: str | None) -> int:
    """The number of the step from which all run anew; past the last where none is asked for."""
    if name is None:
        return len(steps)
    names = [step.name for step in steps]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"from={name}: the recipe has no such step{f'; did you mean {close[0]}?' if close else ''} "
                         f"(its steps: {', '.join(names)})")
    return names.index(name)


def report(name: str, folder: str, steps: Sequence[Step], seconds: float) -> None:
    """Writes the recipe's `result.json` and shows the ladder of its evaluations."""
    from bgetrain.logger import console

    results = {step.name: output.result(step.output_dir) for step in steps}
    rungs = [step for step in steps if results[step.name].get("metrics") is not None]
    ladder = [{"step": step.name.removeprefix(RUNG), **results[step.name]["metrics"]} for step in rungs]
    bm25 = next((results[step.name]["bm25"] for step in rungs if "bm25" in results[step.name]), None)
    figures = {"steps": results, "ladder": ladder, **({"bm25": bm25} if bm25 else {})}
    output.finish(folder, f"recipe {name}", figures)
    if ladder:
        columns = ["ndcg@10", "mrr@10", "recall@100"]
        rows = [[rung["step"], *(rung[column] for column in columns)] for rung in ladder]
        if bm25:
            rows.append(["BM25", *(bm25[column] for column in columns)])
        console.table(f"{name}: {seconds / 60:.1f} min", ["", *columns], rows)
    models = [step.output_dir for step in steps if (Path(step.output_dir) / "model").is_dir()]
    if models:
        print(f"Your model is {models[-1]}/model. Try it on your own texts: "
              f"bgetrain stage=evaluate model.path={models[-1]}/model data=beir data.path=FOLDER, "
              f'or in Python: SentenceTransformer("{models[-1]}/model").encode(["..."])')

