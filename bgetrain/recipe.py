"""Recipes: an ordered mapping of step name to the overrides one would type, with `${step}` for that step's folder."""

import difflib
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from omegaconf import OmegaConf

from bgetrain import config, output, overrides, recipe_file, selection
from bgetrain.cluster.local import INTERRUPTED, complain, is_first, say

OWN_KEYS = ("recipe", "dry_run", "from", "output_dir")
RUNG = "evaluate-"  # steps whose name begins so are the rungs of the ladder


class Step(NamedTuple):
    """One step, ready to run.

    Attributes:
        name: in the recipe.
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
        ValueError: no such recipe or step, a step that does not compose, an override that fits no step, a step's folder
            that belongs to another config.
    """
    own, extras = split(arguments)
    name, folder = own["recipe"], folder_of(own)
    steps = plan(name, folder, extras)
    first_anew = start_again(steps, own.get("from"))
    if own.get("dry_run", "false").lower() == "true":
        for number, step in enumerate(steps):
            print(shlex.join(["bgetrain", *step.overrides, *(["resume=never"] if number >= first_anew else [])]))
        return 0
    check_folders(steps[:first_anew], name)
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
    return value


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


def plan(name: str, folder: str, extras: Sequence[str]) -> list[Step]:
    """Completes every step and checks that it composes, before the first one runs.

    An extra override goes to every step that has its key, save those that take this value from an earlier step: another
    `model.path` is where the recipe starts, and does not cut it apart.
    """
    recipe = recipe_file.load(name)
    folders = {step: f"{folder}/{step}" for step in recipe}
    cluster = [extra for extra in extras if extra.startswith("cluster=")]
    extras = [extra for extra in extras if extra not in cluster]
    keys = {extra: parsed.key_or_group for extra, parsed in zip(extras, overrides.parse(extras), strict=True)}
    unused, known_anywhere = dict(keys), dict.fromkeys(OWN_KEYS)
    steps: list[Step] = []
    for step, listed in recipe.items():
        try:
            own = on_cluster([substitute(each, folders, [done.name for done in steps]) for each in listed], cluster)
            complete = [*own, overrides.quoted("output_dir", folders[step])]
            known = dict.fromkeys(key for key, _ in selection.flatten(config.compose(complete)))
            fed = {each.partition("=")[0] for each in listed if any(f"${{{other}}}" in each for other in recipe)}
            added = [extra for extra, key in keys.items() if fits(extra, key, known) and key not in fed]
            if added:
                complete[-1:-1] = added
                config.compose(complete)
        except ValueError as error:
            raise ValueError(f"recipe={name}, step {step}: {error}") from error
        known_anywhere |= known
        unused = {extra: key for extra, key in unused.items() if extra not in added}
        needs = [other for other in recipe if any(f"${{{other}}}" in each for each in listed)]
        steps.append(Step(step, complete, folders[step], needs))
    for key in unused.values():
        if key in known_anywhere:
            raise ValueError(f"recipe={name}: {key} is what an earlier step leaves, in every step that has this key")
        near = selection.nearest(key, list(known_anywhere), "bgetrain stage=NAME --help")
        raise ValueError(f"recipe={name}: no step has a key {key!r}{near}")
    return steps


def on_cluster(listed: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """A step's overrides on the cluster that was chosen: its `cluster.*` count where that has the key, else they are left out.

    So a step that says how many nodes it takes runs on one machine as well.
    """
    listed = [*listed, *chosen]
    name = next((each.partition("=")[2] for each in reversed(listed) if each.startswith("cluster=")), "local")
    path = selection.CONF / "cluster" / f"{name}.yaml"
    known = yaml.safe_load(path.read_text("utf8")) if path.is_file() else {}  # a wrong name is told by who composes
    return [each for each in listed if not each.startswith("cluster.") or re.split(r"[.=]", each)[1] in known]


def fits(extra: str, key: str, known: dict[str, None]) -> bool:
    """Whether a step with the keys `known` takes an extra override; `+engine.x=1` goes where there is an engine."""
    return key in known or (extra.startswith("+") and "." in key and key.partition(".")[0] in known)


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
        cfg = OmegaConf.to_container(config.compose(step.overrides), resolve=True)
        assert isinstance(cfg, dict)
        try:
            output.standing({str(key): value for key, value in cfg.items()})
        except ValueError as error:
            told = str(error).partition(": choose another")[0]
            ways = f"choose another output_dir, or from={step.name} to start again there"
            raise ValueError(f"recipe={name}, step {step.name}: {told}: {ways}") from error


def done(step: Step) -> bool:
    return (Path(step.output_dir) / "result.json").exists()


def outdated(step: Step, steps: Sequence[Step]) -> bool:
    """Whether a step that it reads has finished after this one did."""
    if not done(step):
        return False
    needed = [other for other in steps if other.name in step.needs]
    finished = output.result(step.output_dir).get("finished_at", 0.0)
    return any(output.result(other.output_dir).get("finished_at", 0.0) > finished for other in needed if done(other))


def report(name: str, folder: str, steps: Sequence[Step], seconds: float | None) -> None:
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
        took = "" if seconds is None else f": {seconds / 60:.1f} min"
        console.table(f"{name}{took}", ["", *columns], rows)
    models = [step.output_dir for step in steps if (Path(step.output_dir) / "model").is_dir()]
    if models:
        print(
            f"Your model is {models[-1]}/model. Try it on your own texts: "
            f"bgetrain stage=evaluate model.path={models[-1]}/model data=beir data.path=FOLDER output_dir=outputs/mine, "
            f'or in Python: SentenceTransformer("{models[-1]}/model").encode(["..."])'
        )
