"""What tasks of MTEB say of a model, through the `mteb` package."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bgetrain.metric.averages import Score
from bgetrain.metric.mteb import own_cache, package, quiet
from bgetrain.metric.tasks import parts
from bgetrain.sources import Benchmark

BATCH = 1024  # texts that mteb hands over at a time; they are put together again
Embed = Callable[[list[str], int, str], np.ndarray]


class Texts(NamedTuple):
    """How a model reads the texts of tasks.

    Attributes:
        embed: (texts, tokens of each at the most, words for progress) -> fp32 [N, D], unit rows.
        query_max_len: tokens of a query.
        passage_max_len: of any other text.
        instruction: put before queries of tasks that take one.
        device: where similarities are computed.
    """

    embed: Embed
    query_max_len: int
    passage_max_len: int
    instruction: str
    device: torch.device


def takes_instruction(name: str, kind: str, asked: Benchmark) -> bool:
    """Whether the queries of a task get the instruction."""

    def among(given: Sequence[str]) -> bool:
        return kind in given or any(fnmatchcase(name, each) for each in given)

    return among(asked.instruction_for) and not among(asked.no_instruction_for)


class Model:
    """A model as `mteb` calls it (its EncoderProtocol).

    Args:
        texts: how it reads.
        asked: which tasks take the instruction.
        name: ORG/NAME, for the folder of results.
        revision: names all that results depend on.
    """

    def __init__(self, texts: Texts, asked: Benchmark, name: str, revision: str) -> None:
        meta = package().models.ModelMeta
        self.texts, self.asked = texts, asked
        known = {"name": name, "revision": revision, "framework": ["PyTorch"], "similarity_fn_name": "cosine"}
        self.mteb_model_meta = meta.create_empty({**known, "use_instructions": bool(texts.instruction)})

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **others: Any) -> np.ndarray:
        """Embeds the texts of a task: fp32 [N, D], unit rows."""
        given = [text for batch in inputs for text in batch["text"]]
        is_query = prompt_type is not None and prompt_type.value == "query"
        if is_query and takes_instruction(task_metadata.name, task_metadata.type, self.asked):
            given = [self.texts.instruction + text for text in given]
        most = self.texts.query_max_len if is_query else self.texts.passage_max_len
        return self.texts.embed(given, most, task_metadata.name)

    def similarity(self, first: Any, second: Any) -> torch.Tensor:
        """Cosines of unit rows [N, D] and [M, D], where the model is: [N, M]."""
        one, other = (torch.as_tensor(each, dtype=torch.float32, device=self.texts.device) for each in (first, second))
        return torch.atleast_2d(one) @ torch.atleast_2d(other).T

    def similarity_pairwise(self, first: Any, second: Any) -> torch.Tensor:
        """Cosines of unit rows [N, D] and [N, D]: [N]."""
        one, other = (torch.atleast_2d(torch.as_tensor(each, dtype=torch.float32)) for each in (first, second))
        return (one * other).sum(-1)


class UnreadableError(Exception):
    """The data of a task cannot be read; says why in one line."""


def evaluated(task: Any, model: Model, folder: Path) -> Score:
    """Scores a model on a task, or finds what an earlier run has written of it.

    Args:
        task: of `chosen`.
        model: to be scored.
        folder: of results as `mteb.ResultCache` has it, which keeps each language of a task as soon as it is done.

    Raises:
        UnreadableError: its data cannot be read.
    """
    mteb = package()
    with quiet():
        cache = mteb.ResultCache(folder)
        for part in parts(task):
            if not is_done(part, model, cache):
                load(part)
                result = measure(mteb, part, model, cache)
                part.unload_data()
        result = measure(mteb, task, model, cache)  # which finds it, and puts an aggregate together
    return Score(task.metadata.name, task.metadata.type, task.metadata.main_score, float(result.get_score()))


def measure(mteb: Any, task: Any, model: Model, cache: Any) -> Any:
    options = {"batch_size": BATCH, "show_progress_bar": False}
    made = mteb.evaluate(model, task, cache=cache, encode_kwargs=options, co2_tracker=False, show_progress_bar=False)
    return made.task_results[0]


def is_done(task: Any, model: Model, cache: Any) -> bool:
    """Whether the results hold all of a task; a file that a killed run has left half written is taken away."""
    path = cache.get_task_result_path(task.metadata.name, model.mteb_model_meta)
    try:
        found = cache.load_task_result(task.metadata.name, model.mteb_model_meta)
    except (ValueError, KeyError):
        path.unlink()
        return False
    return found is not None and found.is_mergeable(task) and not found.get_missing_evaluations(task)


def check(held: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Holds what was read against the splits that are scored.

    Raises:
        ValueError: one is not there, or has no rows.
    """
    for split in splits:
        if split not in held:
            raise ValueError(f"it has no split {split}; there are: {', '.join(map(str, held))}")
        rows = held[split]
        if any(len(each) == 0 for each in ([rows["queries"], rows["corpus"]] if isinstance(rows, dict) else [rows])):
            raise ValueError(f"its split {split} is empty")


def load(task: Any) -> None:
    """Reads the data of a task.

    Raises:
        UnreadableError: it is not there, or not as the task has it.
    """
    path = task.metadata.dataset["path"]
    try:
        with own_cache(Path(path)) if Path(path).is_absolute() else contextlib.nullcontext():
            task.load_data()
        for each in task.hf_subsets if task.dataset else ():  # some tasks keep theirs elsewhere until they are run
            check(task.dataset.get(each, task.dataset), task.eval_splits)
    except Exception as error:  # whatever a format, a network or a script of the hub raises
        remedy = "" if Path(path).is_absolute() else "; without a network point data.folder=DIR at a copy, DIR/ORG/NAME"
        empty = [str(each) for each in sorted(Path(path).rglob("*")) if each.is_file() and not each.stat().st_size]
        words = f"{empty[0]} is empty" if empty else " ".join(str(error).split())[:300] or type(error).__name__
        raise UnreadableError(f"{task.metadata.name}: {path} cannot be read: {words}{remedy}") from error
