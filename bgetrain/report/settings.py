"""What a run was told: the command that its config amounts to, what of it differs from the defaults, whom it reads from."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml
from omegaconf import OmegaConf

from bgetrain import config, output, selection, steps, usage
from bgetrain.report.read import Run, mapping

HIGHEST = 4  # folders above a path that may be a run's: checkpoints/step_9/model is three below
SIDE = ("output_dir", "resume")  # of no weight in a command


class Parent(NamedTuple):
    """A run from whose folder another one reads.

    Attributes:
        key: under which its path stands.
        name: of its folder.
        link: to its page, relative to the reader's folder.
        exists: whether there is a page.
    """

    key: str
    name: str
    link: str
    exists: bool


def changed(run: Run) -> tuple[dict[str, str], list[output.Difference]]:
    """Options that a run chose, as group -> option, and the keys whose values are not those of the options.

    The options are not written down: they are those whose function the config names, with the most values in common.

    Raises:
        ValueError: the stage is not one of ours, or its defaults do not compose.
    """
    name = run.stage
    if name not in selection.options("stage"):
        raise ValueError(f"stage={name} is not known here")
    own = yaml.safe_load((selection.CONF / "stage" / f"{name}.yaml").read_text("utf8"))
    usual = {
        key.removeprefix("/"): value
        for key, value in (pair for each in own.get("defaults", []) if isinstance(each, dict) for pair in each.items())
    }
    usual |= {"cluster": "local", "logger": "none"}
    found = {
        group: option_of(group, mapping(run.config.get(group)), option, mapping(own.get(group)))
        for group, option in usual.items()
    }
    chosen = {group: option for group, option in found.items() if option != usual[group]}
    picked = (f"stage={name}", *(f"{group}={option}" for group, option in chosen.items()))
    try:
        cfg: Any = OmegaConf.to_container(config.composed(picked), resolve=True)
    except config.FAULTS as error:
        raise ValueError(str(error)) from error
    told = output.differences(cfg, run.config)
    return chosen, [each for each in told if not is_hidden(each.key) and each.new != output.UNSET]


def is_hidden(key: str) -> bool:
    """Whether a dotted key says nothing beside the options."""
    return key.partition(".")[0] == "stage" or key.rpartition(".")[2] == "_target_"


def option_of(group: str, node: Mapping[str, Any], usual: str, own: Mapping[str, Any]) -> str:
    """The option of a group that a node was made from: the one that differs from it in the fewest keys.

    Args:
        group: of conf/.
        node: of a run's config.
        usual: the option that the stage chooses itself, which is the answer where others are as near.
        own: what the stage says of the group, whichever option it is (selection.fit_option).
    """
    known = {each: yaml.safe_load((selection.CONF / group / f"{each}.yaml").read_text("utf8")) or {}
             for each in dict.fromkeys((usual, *selection.options(group)))}  # fmt: skip
    fitting = [each for each in known if known[each].get("_target_") == node.get("_target_")]

    def strangeness(option: str) -> tuple[int, bool, bool]:
        values = known[option]
        told = {key: value for key, value in own.items() if option == usual or key in values}
        function = str(node.get("_target_")).rpartition(".")[2]
        return len(output.differences({**values, **told}, node)), option != usual, option != function

    return min(fitting, key=strangeness, default=usual)


def command(run: Run, chosen: Mapping[str, str], told: list[output.Difference]) -> str | None:
    """The command that a run's config amounts to; None: no command that is known here gives this config."""
    words = [f"stage={run.stage}", *(f"{group}={option}" for group, option in chosen.items())]
    for each in told:
        if each.key not in SIDE:
            added = each.old == output.UNSET and not selection.in_mapping(run.config, each.key)
            words.append(f"{'+' * added}{each.key}={usage.typed(each.new)}")
    words.append(f"output_dir={usage.typed(run.config.get('output_dir', str(run.folder)))}")
    try:
        again = config.plain(words)
    except config.FAULTS:
        return None
    if any(each.key not in SIDE for each in output.differences(again, run.config)):
        return None
    return " ".join(["bgetrain", *map(shlex.quote, words)])


def parents(run: Run) -> list[Parent]:
    """The runs whose folders the config names, each once."""
    found: dict[Path, Parent] = {}
    for key, value in texts(run.config, ""):
        folder = folder_of(value, run.folder) if key != "output_dir" else None
        if folder is not None and folder != run.folder and folder not in found:
            page = folder / "report.html"
            found[folder] = Parent(key, folder.name, linked(page, run.folder), os.path.isfile(page))
    return list(found.values())


def linked(page: Path, folder: Path) -> str:
    """The address of a file as seen from a page in a folder."""
    return quote(os.path.relpath(page, folder))


def texts(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text of a config with its dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from texts(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list):
        for each in node:
            yield from texts(each, place)
    elif isinstance(node, str):
        yield place, node


def folder_of(path: str, reader: Path) -> Path | None:
    """The folder of the run that a path leads into; None: into none.

    Args:
        path: as a config has it; a relative one was meant from where the run was started, which may be above the reader.
        reader: folder of the run that has it in its config.
    """
    if "/" not in path or len(path) > 1000 or "\n" in path:
        return None
    for base in (Path.cwd(), *reader.parents):
        place = base / os.path.expanduser(path)
        for folder in (place, *list(place.parents)[:HIGHEST]):
            if folder == reader or (base == folder and base in reader.parents):
                break
            # os.path: no error for what is too long or may not be read
            if os.path.exists(place) and all(os.path.isfile(folder / name) for name in ("config.yaml", "provenance.json")):
                return Path(os.path.normpath(folder))
    return None


def recipe_of(run: Run) -> str | None:
    """Name of the recipe that a run is a step of; None: of none."""
    found = steps.noted(run.folder.parent)
    return found[0] if found and run.folder.name in [step.name for step in found[1]] else None
