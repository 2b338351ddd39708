"""stage=evaluate on tasks of MTEB: rank 0 reads data and scores, and all ranks embed what it asks for."""

import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bgetrain import distributed, hub, output
from bgetrain.data import tokenize as tokens
from bgetrain.data.files import fingerprint
from bgetrain.logger import console
from bgetrain.metric import benchmark
from bgetrain.metric.averages import Score, averages
from bgetrain.metric.mteb import package
from bgetrain.metric.tasks import chosen, files
from bgetrain.search import encode
from bgetrain.search.encode import Encoder
from bgetrain.sources import Benchmark, Source
from bgetrain.stage import build, embed
from bgetrain.types import World

FOLDER = "mteb"  # of results, as the package reads and writes them
BLOCK = 32_768  # texts that ranks share out at a time: enough to order by length, few enough to send


class Request(NamedTuple):
    """Texts that all ranks are to embed.

    Attributes:
        texts: as they are, instruction included.
        max_len: tokens of each at the most.
        what: words for progress.
    """

    texts: list[str]
    max_len: int
    what: str


def run(
    cfg: build.Config, source: Source, asked: Benchmark, world: World, log: Callable[[int, dict[str, float]], None]
) -> dict[str, Any]:
    """Scores a model on tasks of MTEB; a task that an earlier run of this folder has finished is not run again.

    Returns:
        `metrics`, the means; `tasks`, each with its score; where `mteb` finds the results.

    Raises:
        ValueError: a task or its data is not there; the model cannot be used.
    """
    began = time.perf_counter()
    tasks, made = build.all_of(
        lambda: chosen(asked) if world.rank == 0 else [],
        lambda: build.body(cfg, source, world, masked_lm=False),
    )
    used = embed.encoder(cfg, made, world)
    if world.rank > 0:
        serve(used, world)
        return {}
    if asked.folder is not None:
        read = fingerprint(files(tasks, asked.folder))
        output.add_fingerprints(cfg["output_dir"], "tasks", read, cfg["resume"])
    else:
        hub.settle()
    model = benchmark.Model(
        benchmark.Texts(
            lambda texts, max_len, what: over_ranks(used, Request(texts, max_len, what), world),
            source.query_max_len,
            source.passage_max_len,
            source.query_instruction,
            world.device,
        ),
        asked,
        *identity(cfg, source, embed.model_key(cfg, made, used, world)),
    )
    scores = all_scores(tasks, model, Path(cfg["output_dir"]) / FOLDER)
    send(None, world)
    metrics = averages(scores)
    log(0, metrics)
    show(cfg, scores, metrics)
    return {
        "metrics": metrics,
        "tasks": {each.task: {"type": each.type, "metric": each.metric, "score": number(each.value)} for each in scores},
        "results": f"{FOLDER}/results/{model.mteb_model_meta.model_name_as_path()}/{model.mteb_model_meta.revision}",
        "mteb": package().__version__,
        "seconds": time.perf_counter() - began,
    }


def identity(cfg: build.Config, source: Source, model_key: str) -> tuple[str, str]:
    """ORG/NAME of a model for the folder of results, and a name of all that they depend on.

    A folder is called by its last two parts, e.g. finetune/model.
    """
    path = str(cfg["model"].get("path", "model"))
    found = Path(path).expanduser()
    name = "/".join(found.resolve().parts[-2:]) if found.is_dir() else path
    asked = source.benchmark
    assert asked is not None
    instructed = (source.query_instruction, tuple(asked.instruction_for), tuple(asked.no_instruction_for))
    facts = (model_key, *instructed, source.query_max_len, source.passage_max_len)  # not which tasks: those done stay done
    return name, blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def all_scores(tasks: Sequence[Any], model: benchmark.Model, folder: Path) -> list[Score]:
    """Scores each task in turn; one whose data cannot be read does not keep the others from being scored.

    Raises:
        ValueError: the data of a task cannot be read; those that could have their results by then.
    """
    scores, faults = [], []
    for number, task in enumerate(tasks, 1):
        began = time.perf_counter()
        try:
            scores.append(benchmark.evaluated(task, model, folder))
        except benchmark.UnreadableError as error:
            console.say(f"{error}; left for the next run")
            faults.append(str(error))
            continue
        each = scores[-1]
        took = console.duration(time.perf_counter() - began)
        console.say(f"{each.task} ({each.type}): {each.metric} {100 * each.value:.2f} | {number} of {len(tasks)} tasks | {took}")
    if faults:
        rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        done = f"{len(scores)} of {len(tasks)} tasks are done and kept, the same command goes on"
        raise ValueError(f"{faults[0]}{rest}; {done}")
    return scores


def show(cfg: build.Config, scores: Sequence[Score], metrics: dict[str, float]) -> None:
    """The tables of C-Pack: each type's mean with the mean of all tasks, then each task."""
    kinds = [name for name in metrics if not name.startswith("mean_")]
    counts = {kind: sum(each.type == kind for each in scores) for kind in kinds}
    means = [percent(metrics.get(name, float("nan"))) for name in ("mean_task", "mean_type", *kinds)]
    heads = [f"{kind} ({counts[kind]})" for kind in kinds]
    title = f"{len(scores)} tasks of MTEB, in percent; mean of tasks, mean of types, mean of each type (number of its tasks)"
    console.table(title, ["", "mean", "by type", *heads], [[str(cfg["model"].get("path", "model")), *means]])
    order = {kind: place for place, kind in enumerate(kinds)}
    rows = [
        [each.type, each.task, each.metric, percent(each.value)]
        for each in sorted(scores, key=lambda one: order.get(one.type, 99))
    ]
    console.table("each task", ["type", "task", "metric", "score"], rows)


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def number(value: float) -> float | None:
    """For JSON, which has no nan."""
    return value if value == value else None


def serve(used: Encoder, world: World) -> None:
    """Embeds what rank 0 asks for, until it asks for nothing more."""
    while (request := receive(world)) is not None:
        shared_out(used, request, world)


def send(request: Request | None, world: World) -> None:
    """Tells the other ranks what is to be embedded, or that nothing is any more."""
    distributed.after_first(world, lambda: None)
    distributed.from_first(request, world)


def receive(world: World) -> Request | None:
    """What rank 0 sends. It may read data or score for hours before: longer than one may wait in a collective."""
    distributed.after_first(world, lambda: None)
    found: Request | None = distributed.from_first(None, world)
    return found


def over_ranks(used: Encoder, request: Request, world: World) -> np.ndarray:
    """Embeds texts over all ranks; rank 0 calls it while the others serve.

    Returns:
        fp32 [N, D], unit rows.

    Raises:
        ValueError: an embedding is not finite; says of which text.
    """
    found = []
    with console.track(f"{request.what}: embed", len(request.texts)) as advance:
        for start in range(0, len(request.texts), BLOCK):
            block = request._replace(texts=request.texts[start : start + BLOCK])
            send(block, world)
            rows = shared_out(used, block, world, lambda count: advance(count * world.size))
            assert rows is not None
            found.append(rows)
    rows = np.concatenate(found) if found else np.empty((0, encode.width(used.module)), np.float32)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        text = request.texts[bad[0]][:60]
        raise ValueError(f"{request.what}: {len(bad)} of {len(rows)} embeddings are not finite, the first that of {text!r}")
    return rows


def shared_out(
    used: Encoder, request: Request, world: World, advance: Callable[[int], None] = lambda _: None
) -> np.ndarray | None:
    """Embeds this rank's share of texts: every W-th in order of length, so that all ranks have as much to do.

    Returns:
        On rank 0 fp32 [N, D], the rows of all texts; elsewhere None.
    """
    order = np.argsort([len(text) for text in request.texts], kind="stable")
    own = order[world.rank :: world.size]
    padded = np.zeros((-(-len(order) // world.size), encode.width(used.module)), np.float32)  # shapes must agree
    if len(own):
        text = tokens.tokenize(used.tokenizer, [request.texts[place] for place in own], request.max_len)
        padded[: len(own)] = encode.embed(used, text, advance).float().cpu().numpy()
    parts = distributed.gather_to(padded, 0, world)
    if parts is None:
        return None
    rows = np.empty((len(order), padded.shape[1]), np.float32)
    for rank, part in enumerate(parts):
        places = order[rank :: world.size]
        rows[places] = part[: len(places)]
    return rows
