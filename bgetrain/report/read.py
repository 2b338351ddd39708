"""What a run has left in its folder, whatever its state: a file that is missing or broken counts as nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from bgetrain import lock

State = Literal["done", "running", "unfinished"]


class Run(NamedTuple):
    """A folder of a run.

    Attributes:
        folder: absolute.
        config: resolved, secrets masked, as `config.yaml` has it.
        provenance: versions, fingerprints and sessions.
        steps: lines of `metrics.jsonl` that are of training steps, in their order.
        result: of `result.json`.
        examples: of `examples.json`.
        report: of `report.json`, which some stages write.
        state: running: a process holds the folder.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    steps: list[dict[str, Any]]
    result: dict[str, Any]
    examples: dict[str, Any]
    report: dict[str, Any]
    state: State

    @property
    def stage(self) -> str:
        return str(mapping(self.config.get("stage")).get("name", "?"))


def run(folder: Path) -> Run:
    """Reads a run.

    Args:
        folder: of the run.

    Raises:
        ValueError: there is no `config.yaml` that a run has written.
    """
    folder = folder.absolute()
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text("utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder}/config.yaml: cannot be read: this is no folder of a run") from error
    if not isinstance(config, dict) or not isinstance(config.get("stage"), dict):
        raise ValueError(f"{folder}/config.yaml: is not a run's config")
    result = of_json(folder / "result.json")
    state: State = "done" if result.get("status") == "done" else "running" if lock.holder(str(folder)) else "unfinished"
    return Run(
        folder,
        config,
        of_json(folder / "provenance.json"),
        step_lines(folder / "metrics.jsonl"),
        result,
        of_json(folder / "examples.json"),
        of_json(folder / "report.json"),
        state,
    )


def of_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none."""
    try:
        return mapping(json.loads(path.read_text("utf8")))
    except (OSError, ValueError):
        return {}


def mapping(value: Any) -> dict[str, Any]:
    """`value` where it is a mapping, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def step_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of training steps: each step once, by its last line, in rising order.

    Lines without `progress_ratio` are of no step; one that is cut off is being written.
    """
    found: dict[int, dict[str, Any]] = {}
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    figures = json.loads(line)
                except ValueError:
                    continue
                if isinstance(figures, dict) and isinstance(figures.get("step"), int) and "progress_ratio" in figures:
                    found[figures["step"]] = figures
    except OSError:
        return []
    return [found[step] for step in sorted(found)]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
