"""Evaluation while a stage trains: a retrieval set and held-out data, by the model as it is at that step."""

import contextlib
import difflib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from bgetrain import distributed
from bgetrain.data.corpus import beir
from bgetrain.engine.best import Scoring
from bgetrain.metric.ranking import MEASURES
from bgetrain.sources import Retrieval, Source
from bgetrain.stage import build, retrieval
from bgetrain.target import call
from bgetrain.types import NonNegativeInt, PositiveInt, World


class Asked(NamedTuple):
    """The keys of `evaluate`, as `validation` has them."""

    every: int | None
    held_out: int
    path: str | None
    split: str | None
    metric: str | None
    patience: int | None
    model: str


def validation(
    *,
    every: PositiveInt | None,
    held_out: NonNegativeInt,
    path: str | None,
    split: str | None,
    metric: str | None,
    patience: PositiveInt | None,
    model: Literal["best", "last"],
) -> Asked:
    """What is evaluated while a stage trains, when, and what follows from it.

    Args:
        every: steps between two evaluations; None: there are none, nor is anything held out.
        held_out: rows or texts of each source that are kept back from training and scored.
        path: a folder in BEIR layout; None: the training data, where `split` is set.
        split: of the retrieval set; None: there is none.
        metric: the figure by which a step is the best; None: ndcg@10, without a retrieval set held_out_loss.
        patience: evaluations in a row without a better one after which training ends; None: it goes on.
        model: whose weights `model/` gets: the best step's, or the last one's.
    """
    return Asked(every, held_out, path, split, metric, patience, model)


class Subject(NamedTuple):
    """The model in training, as it is evaluated.

    Attributes:
        module: is put into evaluation mode and back.
        forward: the tensors of a chunk -> embeddings [N, D], unit rows.
        tokenizer: its own.
        pad_id: of a padded chunk; None: chunks are packed.
        width: D.
    """

    module: nn.Module
    forward: retrieval.Forward
    tokenizer: Any
    pad_id: int | None
    width: int


class HeldOut(NamedTuple):
    """Data kept back from training.

    Attributes:
        score: figures of the model as it is, named held_out_*; every rank calls it, in evaluation mode.
        size: rows or texts of all sources.
        what: they are: rows, texts.
    """

    score: Callable[[], dict[str, float]]
    size: int
    what: str


def opened(cfg: build.Config, source: Source, world: World) -> Retrieval | None:
    """The retrieval set that `evaluate.path` and `evaluate.split` name; None where they do not, or nothing is evaluated.

    Raises:
        ValueError: there is no such set.
    """
    asked: Asked = call(cfg["evaluate"])
    if asked.every is None or asked.split is None:
        return None
    split, open_set = asked.split, source.retrieval
    if asked.path is not None:
        open_set = partial(opened_folder, asked.path, source)
    if open_set is None:
        raise ValueError(
            f"evaluate.split={split}: {source.name} has no corpus and queries: add evaluate.path=FOLDER, a BEIR folder"
        )
    try:
        found: Retrieval = distributed.after_first(world, lambda: open_set(split))
    except ValueError as error:
        raise ValueError(f"evaluate.split={split}: {error}") from error
    build.tell(found, world)
    return found


def opened_folder(path: str, source: Source, split: str) -> Retrieval:
    """A folder in BEIR layout, whose texts are cut as those of the training data."""
    try:
        made = beir(
            path,
            query_max_len=source.query_max_len,
            passage_max_len=source.passage_max_len,
            query_instruction=source.query_instruction,
            missing_negatives=source.missing_negatives,  # type: ignore[arg-type]
            split=split,
        )
    except ValueError as error:
        raise ValueError(f"evaluate.path={path} is no folder in BEIR layout: {error}") from error
    assert made.retrieval is not None
    return made.retrieval(split)


def scoring(
    cfg: build.Config,
    source: Source,
    found: Retrieval | None,
    subject: Subject,
    held_out: HeldOut | None,
    total_steps: int,
    world: World,
) -> tuple[Scoring | None, dict[str, str]]:
    """How the run is evaluated, and that in words for the announcement.

    Args:
        cfg: of the stage.
        source: the training data, whose lengths and instruction the retrieval set's texts get.
        found: the retrieval set; None: there is none.
        subject: the model.
        held_out: None: nothing was held out.
        total_steps: of the run.
        world: all ranks; every one calls this.

    Raises:
        ValueError: the run ends before the first evaluation, or has no figure of the name of `evaluate.metric`.
    """
    asked: Asked = call(cfg["evaluate"])
    if asked.every is None:
        return None, {}
    if asked.every > total_steps:
        raise ValueError(f"evaluate.every={asked.every} exceeds the {total_steps} steps of the run: use {total_steps} or less")
    live = found and retrieval.live(cfg, source, found, subject.tokenizer, subject.pad_id, subject.width, world)
    metric = metric_of(asked, live is not None, held_out, subject.module)
    score = partial(scored, cfg, live, subject, held_out, world)
    return Scoring(score, asked.every, metric, asked.patience), {"evaluated": told(asked, source, found, held_out, metric)}


def scored(
    cfg: build.Config, live: retrieval.Live | None, subject: Subject, held_out: HeldOut | None, world: World
) -> dict[str, float]:
    """All figures of the model as it is, the same on every rank."""
    began = time.perf_counter()
    with at_rest(subject.module):
        figures = {} if live is None else retrieval.evaluated(cfg, live, subject.forward, world)
        figures |= {} if held_out is None else held_out.score()
    took: dict[str, float] = distributed.from_first({**figures, "evaluate_seconds": time.perf_counter() - began}, world)
    return took


@contextlib.contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Without dropout and gradients, and afterwards in training again, whatever happened."""
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train()


def metric_of(asked: Asked, retrieves: bool, held_out: HeldOut | None, module: nn.Module) -> str:
    """The figure by which steps are compared.

    Raises:
        ValueError: the run has no such figure.
    """
    metric = asked.metric or ("ndcg@10" if retrieves else "held_out_loss")
    known = [*(MEASURES if retrieves else ()), *(["held_out_loss"] if held_out else [])]
    if metric not in known and held_out is not None:  # what a loss tells is known when it has told it
        with at_rest(module):
            known += [name for name in held_out.score() if name not in known]
    if metric not in known:
        close = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"valid: {', '.join(known)}"
        raise ValueError(f"evaluate.metric={metric} is no figure of this run; {hint}")
    return metric


def told(asked: Asked, source: Source, found: Retrieval | None, held_out: HeldOut | None, metric: str) -> str:
    """What is evaluated when, in words."""
    parts = []
    if found is not None:
        size = f"{len(found.queries):,} queries, {len(found.passages):,} passages"
        parts.append(f"{asked.split} of {asked.path or source.name}, {size}")
    if held_out is not None:
        parts.append(f"{held_out.size:,} held-out {held_out.what}")
    ends = "" if asked.patience is None else f", training ends after {asked.patience} without a better one"
    steps = "every step" if asked.every == 1 else f"every {asked.every:,} steps"
    return f"{', and '.join(parts)}, {steps}; best by {metric}{ends}, model/ gets the {asked.model}"
