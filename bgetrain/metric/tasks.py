"""Which tasks of MTEB are meant by names, benchmarks, types and languages, and where their data is."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bgetrain.metric.mteb import package, quiet, task_names
from bgetrain.mteb_names import ALIASES, plain, unknown
from bgetrain.sources import Benchmark


def chosen(asked: Benchmark) -> list[Any]:
    """The tasks that are meant, each once, reading their data where it is.

    Raises:
        ValueError: a name, type or language that there is not; a task of other things than texts; no task is left.
    """
    mteb = package()
    with quiet():
        by_name = {plain(name): name for name in task_names()}
        benchmarks = {plain(each): one for one in mteb.get_benchmarks() for each in (one.name, *(one.aliases or ()))}
        benchmarks |= {plain(alias): benchmarks[plain(name)] for alias, name in ALIASES.items()}
        found: dict[str, Any] = {}
        for name in asked.tasks:
            if plain(name) in by_name:
                new = [mteb.get_task(by_name[plain(name)])]
            elif plain(name) in benchmarks:
                new = list(benchmarks[plain(name)].tasks)
            else:
                raise ValueError(unknown(name, {**by_name, **{key: one.name for key, one in benchmarks.items()}}))
            found |= {task.metadata.name: task for task in new if task.metadata.name not in found}
        if not asked.tasks:
            new = mteb.get_tasks(task_types=list(asked.types), modalities=["text"], exclusive_modality_filter=True)
            found = {task.metadata.name: task for task in new}
        tasks = [task for task in found.values() if not asked.types or task.metadata.type in asked.types]
        tasks = [kept for task in tasks if (kept := in_languages(task, asked.languages)) is not None]
    if not tasks:
        raise ValueError(f"data.types={list(asked.types)} and data.languages={list(asked.languages)} leave no task of data.tasks")
    for task in tasks:
        if task.metadata.modalities != ["text"]:
            raise ValueError(
                f"data.tasks has {task.metadata.name}, which is of {', '.join(task.metadata.modalities)}, not of text alone"
            )
    return tasks if asked.folder is None else in_folder(tasks, asked.folder)


def in_languages(task: Any, languages: Sequence[str]) -> Any:
    """The task with those of its subsets that are in these languages alone; None where there is none.

    Raises:
        ValueError: a language that there is not.
    """
    made = copy.deepcopy(task)  # those of a benchmark belong to the package, and draw random numbers of their own
    if not languages:
        return made
    try:
        made.filter_languages(list(languages), exclusive_language_filter=True)
    except ValueError as error:
        if "No subsets" in str(error):
            return None
        raise ValueError(
            f"data.languages={list(languages)}: {error}; give codes of ISO 639-3, e.g. [eng] or [cmn-Hans]"
        ) from error
    made.hf_subsets = [each for each in made.hf_subsets if each in task.hf_subsets]
    return made if made.hf_subsets else None


def parts(task: Any) -> list[Any]:
    """The tasks that have data: those of an aggregate, or the task itself."""
    return list(task.metadata.tasks) if task.is_aggregate else [task]


def in_folder(tasks: Sequence[Any], folder: str) -> list[Any]:
    """The tasks, each reading its data set from FOLDER/ORG/NAME.

    Raises:
        ValueError: one is not there; names all that are missing, where the first was looked for and how to fetch it.
    """
    missing = {part.metadata.dataset["path"]: (part, task) for task in tasks for part in parts(task)}
    missing = {path: found for path, found in missing.items() if not Path(folder, path).is_dir()}
    if missing:
        path, (part, task) = next(iter(missing.items()))
        place, revision = Path(folder, path), part.metadata.dataset["revision"]
        more = list(missing)[1:]
        also = f", nor {', '.join(more[:5])}{f' and {len(more) - 5} more' if len(more) > 5 else ''}" if more else ""
        raise ValueError(
            f"data.folder={folder} has no {path}, which {task.metadata.name} reads{also}: {place} is no folder; fetch it with: "
            f"hf download --repo-type dataset {path} --revision {revision} --local-dir {place}"
        )
    return [here(task, folder) for task in tasks]


def here(task: Any, folder: str) -> Any:
    """A task, or an aggregate of some, that reads FOLDER/ORG/NAME; the revision stays, which its result names."""
    made = copy.copy(task)
    if task.is_aggregate:
        inside = [here(part, folder) for part in task.metadata.tasks]
        made.metadata = task.metadata.model_copy(update={"tasks": inside})
        made.tasks, made.taskname_to_task = inside, {part.metadata.name: part for part in inside}
    else:
        dataset = {**task.metadata.dataset, "path": str(Path(folder, task.metadata.dataset["path"]))}
        made.metadata = task.metadata.model_copy(update={"dataset": dataset})
    return made


def files(tasks: Sequence[Any], folder: str) -> list[str]:
    """What tasks read from a folder, for fingerprints."""
    paths = {part.metadata.dataset["path"] for task in tasks for part in parts(task)}
    found = (path for each in paths for path in Path(folder, each).rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not any(each.startswith(".") for each in path.relative_to(folder).parts))
