"""stage=export: a model for use elsewhere, and what smaller vectors of it cost."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bgetrain import card, distributed, hub
from bgetrain.logger import console
from bgetrain.model import exported, onnx
from bgetrain.model.body import Body
from bgetrain.model.exported import Wanted
from bgetrain.model.pooling import file_of
from bgetrain.search import quantised
from bgetrain.sources import Retrieval, Source
from bgetrain.stage import build, embed, results, retrieval
from bgetrain.stage.embed import Embedded
from bgetrain.target import call
from bgetrain.types import World


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Leaves `output_dir/model` in the dtype asked for, with ONNX, a card and, where there is a data set, measured losses.

    Args:
        cfg: the resolved config, as `conf/stage/export.yaml` has it.
        world: all ranks.
        log: called on rank 0 with the metrics of the full vectors, as step 0.

    Returns:
        Figures for `result.json`; on rank 0, empty elsewhere.

    Raises:
        ValueError: model or data cannot be used as asked, or the hub refuses.
    """
    began = time.perf_counter()
    asked: Wanted = call(cfg["export"])
    if asked.onnx:
        onnx.check_installed()
    if asked.push_to is not None and world.rank == 0:
        hub.check_push(asked.push_to, online=not asked.dry_run)
    if (asked.dimensions or asked.vectors) and cfg["data"].get("path") == "":
        raise ValueError("export.dimensions and export.vectors are measured on a retrieval set: give data.path=FOLDER")
    source, opened, made = loaded(cfg, world)
    exported.check_widths(asked, made.backbone.config.hidden_size)
    exported.round_weights(made, asked.dtype)
    # not a collective: the others may have to wait for long
    figures = distributed.after_first(world, lambda: written(cfg, asked, made, source) if world.rank == 0 else {})
    if opened is not None:
        figures |= measured(cfg, asked, made, source, opened, world, log)
    distributed.barrier(world)
    if world.rank > 0:
        return {}
    finish(cfg, asked, figures)
    return {**figures, "seconds": time.perf_counter() - began}


def loaded(cfg: build.Config, world: World) -> tuple[Source, Retrieval | None, Body]:
    """Data, where there is any, and model."""
    if cfg["data"].get("path") == "":
        source = Source("", None, None, None, [], "", 0, 0, cfg["data"]["query_instruction"], "refuse")
        make = partial(call, cfg["model"], masked_lm=False, seed=cfg["seed"])
        vocabulary = partial(build.vocabulary, cfg, source)
        return source, None, distributed.after_first(world, lambda: make(vocabulary=vocabulary))
    source = build.source(cfg, world)
    open_set = build.need(source.retrieval, source, cfg, "corpus and queries", "data=beir or data=pydocs")
    opened, made = build.all_of(
        lambda: distributed.after_first(world, lambda: open_set(source.split)),
        lambda: build.body(cfg, source, world, masked_lm=False),
    )
    build.tell(opened, world)
    return source, opened, made


def written(cfg: build.Config, asked: Wanted, made: Body, source: Source) -> dict[str, Any]:
    """Writes `model/`; figures of it."""
    path = cfg["model"].get("path")
    with results.written(cfg, "model") as target:
        exported.save(target, made, asked, source=path, keys=cfg["model"], query_instruction=source.query_instruction)
        theirs = file_of(path, "README.md") if path and Path(path).expanduser().is_dir() else None
        if theirs is not None and not card.is_ours(theirs):
            exported.take(path, target, ["README.md"])
            console.say(f"{target / 'README.md'} is that of {path}, which somebody has written; nothing is added to it")
        figures: dict[str, Any] = {"dtype": asked.dtype, "width": made.backbone.config.hidden_size}
        if asked.truncate_dim:
            figures["truncate_dim"] = asked.truncate_dim
        if asked.onnx:
            graph = target / "onnx/model.onnx"
            found = onnx.export(graph, made.backbone, made.tokenizer, pooling=made.pooling, max_positions=made.max_positions)
            figures["onnx"] = found._asdict()
            console.say(
                f"{graph}: {found.bytes / 1e6:.1f} MB; in onnxruntime vectors of {found.texts} texts differ from the model's by "
                f"{found.largest_difference:.1e} at the most, lowest cosine {found.lowest_cosine:.7f}"
            )
    return figures


def measured(
    cfg: build.Config,
    asked: Wanted,
    made: Body,
    source: Source,
    opened: Retrieval,
    world: World,
    log: Callable[[int, dict[str, float]], None],
) -> dict[str, Any]:
    """How well the set is retrieved with each kind and width of vectors; writes those of the corpus. Rank 0's figures."""
    whole = embed.embedded(cfg, made, source, opened, world)
    last = asked.truncate_dim or whole.passages.width
    widths = sorted({*asked.dimensions, last, whole.passages.width}, reverse=True)
    rows: list[dict[str, Any]] = []
    for width in widths:
        cut = Embedded(*(quantised.shortened(each, width) for each in whole))
        for name, kind, metrics in kinds(cfg, asked, cut, opened, world):
            size = quantised.num_bytes(kind, width)
            rows.append({"dimension": width, "kind": name, "bytes": size, **metrics})
        if width == last:
            write_vectors(cfg, asked, cut, opened, world)
    if world.rank > 0:
        return {}
    best = rows[0]["ndcg@10"]
    table = [{**row, "loss": row["ndcg@10"] - best} for row in rows]
    metrics = {key: value for key, value in rows[0].items() if key not in ("dimension", "kind", "bytes")}
    log(0, metrics)
    what = f"{source.name}, {source.split}: {len(opened.queries):,} queries, {len(opened.passages):,} passages"
    columns = ["dimension", "vectors", "bytes", "ndcg@10", "loss", "recall@100"]
    shown = [
        [str(each["dimension"]), each["kind"], str(each["bytes"]), each["ndcg@10"], each["loss"], each["recall@100"]]
        for each in table
    ]
    console.table(what, columns, shown)
    place = f"{Path(str(cfg['data'].get('path') or source.name)).name}, {source.split}"
    of = f"{place}: {len(opened.queries):,} queries, {len(opened.passages):,} passages"
    return {"metrics": metrics, "vectors": table, "vectors_of": of}


def kinds(
    cfg: build.Config, asked: Wanted, cut: Embedded, opened: Retrieval, world: World
) -> Iterator[tuple[str, quantised.Kind, dict[str, float]]]:
    """Metrics of one width with each kind of vectors; the queries are fp32 but where nothing is said of scoring anew."""
    width, depth = cut.passages.width, retrieval.DEPTH

    def scored(pair: Embedded) -> dict[str, float]:
        return retrieval.metrics(opened, embed.ranked(cfg, pair, depth, world), world)

    yield "fp32", "fp32", scored(cut)
    if "int8" in asked.vectors:
        ranges = quantised.ranges_of(cut.passages, world)
        smaller = quantised.changed(
            cut.passages, lambda block: quantised.from_int8(quantised.to_int8(block, ranges), ranges), width
        )
        yield "int8", "int8", scored(Embedded(cut.queries, smaller))
    if "binary" in asked.vectors:
        bits = Embedded(*(quantised.changed(each, quantised.signs, width) for each in cut))
        found = embed.ranked(cfg, bits, depth * asked.rescore, world)
        first = found._replace(scores=found.scores[:, :depth], places=found.places[:, :depth])
        yield "binary", "binary", retrieval.metrics(opened, first, world)
        again = quantised.rescored(found, cut.queries, bits.passages, depth, world)
        yield "binary, rescored", "binary", retrieval.metrics(opened, again, world)


def write_vectors(cfg: build.Config, asked: Wanted, cut: Embedded, opened: Retrieval, world: World) -> None:
    """The corpus in the kinds asked for, with what is needed to make more of them, under `vectors/`."""
    folder = Path(cfg["output_dir"]) / "vectors"
    if "int8" in asked.vectors:
        ranges = quantised.ranges_of(cut.passages, world)
        quantised.write(folder / "int8.npy", cut.passages, lambda block: quantised.to_int8(block, ranges), world)
        if world.rank == 0:
            np.save(folder / "int8-ranges.npy", ranges)
    if "binary" in asked.vectors:
        quantised.write(folder / "binary.npy", cut.passages, quantised.to_binary, world)
    if asked.vectors and world.rank == 0:
        with (folder / "names.txt").open("w", encoding="utf8") as file:
            file.writelines(f"{name}\n" for name in opened.passages.names(range(len(opened.passages))))


def finish(cfg: build.Config, asked: Wanted, figures: dict[str, Any]) -> None:
    """Writes the card, and pushes or lists what would be pushed; adds to the figures."""
    folder = Path(cfg["output_dir"])
    card.write(folder, figures)
    files = hub.listing(folder / "model")
    figures["files"] = {each.name: each.bytes for each in files}
    if asked.push_to is None:
        return
    if asked.dry_run:
        kind = "private" if asked.private else "public"
        total = sum(each.bytes for each in files)
        title = f"dry run: {len(files)} files, {total / 1e6:,.1f} MB would go to {asked.push_to} ({kind} where it is made)"
        console.table(title, ["file", "bytes"], [[each.name, f"{each.bytes:,}"] for each in files])
        return
    figures["pushed"] = hub.push(folder / "model", asked.push_to, private=asked.private)
    console.say(f"pushed: {figures['pushed']}")
