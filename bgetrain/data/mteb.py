"""Tasks of MTEB and of C-MTEB as data of stage=evaluate; what they hold is read by the `mteb` package when it runs."""

from bgetrain.data.files import existing
from bgetrain.sources import Benchmark, Source
from bgetrain.types import PositiveInt, TaskType


def mteb(
    *,
    tasks: list[str],
    types: list[TaskType],
    languages: list[str],
    folder: str | None,
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    instruction_for: list[str],
    no_instruction_for: list[str],
) -> Source:
    """Names the tasks that a model is evaluated on.

    Args:
        tasks: names of tasks and of benchmarks.
        types: of these tasks, the ones of these types; with no `tasks`, of all tasks.
        languages: of these tasks, the subsets in these languages, ISO 639-3.
        folder: where each data set stands at FOLDER/ORG/NAME; None: they come from the hub or its cache.
        query_max_len: tokens of a query of a retrieval task, with instruction and special tokens.
        passage_max_len: tokens of any other text.
        query_instruction: put before the queries of the tasks that `instruction_for` names.
        instruction_for: types of tasks, or names with wildcards.
        no_instruction_for: exceptions.

    Raises:
        ValueError: there is no such folder.
    """
    place = str(existing(folder, "data.folder").resolve()) if folder is not None else None
    asked = Benchmark(tasks, types, languages, place, instruction_for, no_instruction_for)
    return Source(
        "data=mteb",
        None,
        None,
        None,
        [],
        "test",
        query_max_len,
        passage_max_len,
        query_instruction,
        "refuse",
        benchmark=asked,
    )
