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

HIDDEN = ("_target_", "stage")  # keys that say nothing beside the options
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
        key.removeprefix("/"): value for each in own.get("defaults", []) if isinstance(each, dict) for key, value in each.items()
    }
    usual |= {"cluster": "local", "logger": "none"}
    found = {group: option_of(group, mapping(run.config.get(group)), option) for group, option in usual.items()}
    chosen = {group: option for group, option in found.items() if option != usual[group]}
    picked = (f"stage={name}", *(f"{group}={option}" for group, option in chosen.items()))
    try:
        cfg: Any = OmegaConf.to_container(config.composed(picked), resolve=True)
    except config.FAULTS as error:
        raise ValueError(str(error)) from error
    told = output.differences(cfg, run.config)
    return chosen, [each for each in told if each.key.rpartition(".")[2] not in HIDDEN and each.new != output.UNSET]


def option_of(group: str, node: Mapping[str, Any], usual: str) -> str:
    """The option of a group that a node was made from."""

    def agreement(option: str) -> tuple[int, bool]:
        known = yaml.safe_load((selection.CONF / group / f"{option}.yaml").read_text("utf8")) or {}
        if known.get("_target_") != node.get("_target_"):
            return -1, False
        return sum(key in node and node[key] == value for key, value in known.items()), option == usual

    return max([usual, *selection.options(group)], key=agreement)


def command(run: Run, chosen: Mapping[str, str], told: list[output.Difference]) -> str:
    """The command that a run's config amounts to."""
    words = [f"stage={run.stage}", *(f"{group}={option}" for group, option in chosen.items())]
    words += [f"{each.key}={usage.typed(each.new)}" for each in told if each.key not in SIDE]
    return " ".join(["bgetrain", *map(shlex.quote, [*words, f"output_dir={run.config.get('output_dir', run.folder)}"])])


def parents(run: Run) -> list[Parent]:
    """The runs whose folders the config names, each once."""
    found: dict[Path, Parent] = {}
    for key, value in texts(run.config, ""):
        folder = folder_of(value, run.folder) if key != "output_dir" else None
        if folder is not None and folder != run.folder and folder not in found:
            page = folder / "report.html"
            found[folder] = Parent(key, folder.name, linked(page, run.folder), page.is_file())
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
            if place.exists() and (folder / "config.yaml").is_file() and (folder / "provenance.json").is_file():
                return Path(os.path.normpath(folder))
    return None


def recipe_of(run: Run) -> str | None:
    """Name of the recipe that a run is a step of; None: of none."""
    found = steps.noted(run.folder.parent)
    return found[0] if found and run.folder.name in [step.name for step in found[1]] else None
