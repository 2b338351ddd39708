"""stage=filter: drops pairs that a scorer holds for unlike, or whose positive it does not find again among others.

Rows are gone through in parts of fixed size, dealt over the ranks. A part is scored by one rank from beginning to end, so
that its files do not depend on how many ranks there are, and is done when its counts are written, last: a run that was
stopped goes on with the parts that are not.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bgetrain import distributed
from bgetrain.data import tokenize as tokens
from bgetrain.data.groups import keys
from bgetrain.data.order import hashed
from bgetrain.data.rows import files_of
from bgetrain.logger import console
from bgetrain.logger.histogram import histogram
from bgetrain.output import write
from bgetrain.search import encode, filtering, tally
from bgetrain.sources import Rows, Source
from bgetrain.stage import build, embed, supply
from bgetrain.target import call
from bgetrain.types import World

POOL, PASSAGE, SAMPLE = 11, 12, 13  # keep the draws apart
SHARD = 8192  # passages of the pool that one rank embeds together
Embed = Callable[[Sequence[str], int], np.ndarray]  # (texts, max_len) -> fp32 [N, D] on the rank that calls it


class Job(NamedTuple):
    """One source on its way through the filter.

    Attributes:
        name: in a mixture; "" where there is one source.
        source: its lengths.
        rows: all of them.
        drawn: int64, the rows of a sample; None: all rows.
        rules: when a pair is kept.
        seed: of the pool.
        folder: output_dir.
        made_by: names the rules, the model and the lengths.
    """

    name: str
    source: Source
    rows: Rows
    drawn: np.ndarray | None
    rules: filtering.Rules
    seed: int
    folder: Path
    made_by: str = ""

    def parts(self) -> int:
        """Parts in all."""
        return -(-self.total() // self.rules.rows_per_part)

    def total(self) -> int:
        """Rows to go through."""
        return len(self.rows) if self.drawn is None else len(self.drawn)

    def places(self, part: int) -> list[int]:
        """The rows of a part."""
        size = self.rules.rows_per_part
        stretch = range(part * size, min((part + 1) * size, self.total()))
        return list(stretch) if self.drawn is None else self.drawn[stretch.start : stretch.stop].tolist()

    def file(self, kind: str, part: int, suffix: str) -> Path:
        """`kept/part-000000.jsonl` and the like; `kept/NAME/part-000000.jsonl` of a mixture."""
        return self.folder / kind / self.name / f"part-{part:06d}.{suffix}"


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Scores every pair and writes `kept/part-*.jsonl` and `dropped/part-*.jsonl`, `report.json` and `similarity.png`.

    A row is written as data=jsonl reads it, with the positives that were kept (dropped); it stands in both where it has
    some of each. `similarity`, and `rank` where there is a pool, have a number for each of its positives. They are its
    `pos_scores` too, unless the row came with scores: those stay, because its `neg_scores` are on their scale.

    Args:
        cfg: the resolved config, as `conf/stage/filter.yaml` has it.
        world: all ranks.
        log: called on rank 0 with the counts, as step 0.

    Returns:
        Figures for `result.json`: rows and positives, and how many of them were kept and dropped by what.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    began = time.perf_counter()
    rules: filtering.Rules = call(cfg["filter"])
    source = build.source(cfg, world)
    build.need(source.rows, source, cfg, "labelled rows", "data=jsonl or another set of pairs")
    jobs, body = build.all_of(
        lambda: distributed.after_first(world, lambda: opened(cfg, rules, source)),
        lambda: build.body(cfg, source, world, masked_lm=False),
    )
    used = embed.encoder(cfg, body, world)
    model = distributed.from_first(embed.model_key(cfg, body, used, world) if world.rank == 0 else "", world)
    embedder = on_one_rank(used, body.tokenizer)
    jobs = [job._replace(made_by=made_by(job, model)) for job in jobs]
    for job in jobs:
        build.tell(job.rows, world)
        one_source(job, embedder, world)
    distributed.barrier(world)
    if world.rank > 0:
        return {}
    counts: dict[str, Any] = {}
    for job in jobs:
        counts = tally.plus(counts, added(job))
    figures = reported(Path(cfg["output_dir"]), rules, counts)
    shutil.rmtree(Path(cfg["output_dir"]) / "pool", ignore_errors=True)
    log(0, {name: float(value) for name, value in figures.items()})
    return {**figures, "seconds": time.perf_counter() - began}


def reported(folder: Path, rules: filtering.Rules, counts: Mapping[str, Any]) -> dict[str, int]:
    """Writes `report.json` and `similarity.png` and shows tables; returns the figures of `result.json`."""
    found = tally.summary(counts)
    write(folder / "report.json", json.dumps({"rules": rules._asdict(), **found}, indent=2, ensure_ascii=False))
    bins = {name: tally.unbinned(each, parts=8) for name, each in counts["similarity"].items()}
    histogram(
        folder / "similarity.png",
        {name: values for name, (values, _) in bins.items()},
        title=f"{counts['positives']:,} positives",
        label="cosine of query and positive",
        line=rules.min_similarity,
        weights={name: sizes for name, (_, sizes) in bins.items()},
    )
    if rules.sample is not None:
        console.table(
            f"similarity of {counts['positives']:,} positives",
            ["share below", *found["quantiles"]],
            [["similarity", *found["quantiles"].values()]],
        )
        shares = [[f"filter.min_similarity={least}", share] for least, share in found["kept_at"].items()]
        ranked = found.get("ranked_within", {}).items()
        shares += [[f"filter.top_k={cutoff}", share] for cutoff, share in ranked if int(cutoff) < rules.pool]
        console.table("share that would be kept", ["by", "share"], shares)
        console.say(f"nothing was dropped: this was a look at {counts['rows']:,} rows; filter.sample=null filters all")
        return {name: value for name, value in found.items() if isinstance(value, int) and name in ("rows", "positives")}
    rows = [[name, each["rows"], each["rows_kept"], each["rows_kept"] / each["rows"]] for name, each in found["sources"].items()]
    console.table("rows", ["source", "rows", "kept", "share"], rows)
    console.say(
        f"kept {counts['rows_kept']:,} of {counts['rows']:,} rows in {folder}/kept; of {counts['positives']:,} positives "
        f"{counts['positives_dropped_by_similarity']:,} were dropped by similarity, "
        f"{counts['positives_dropped_by_rank']:,} by rank"
    )
    return {name: value for name, value in found.items() if isinstance(value, int)}


def opened(cfg: Mapping[str, Any], rules: filtering.Rules, source: Source) -> list[Job]:
    """The sources to go through: those of a mixture, or the one."""
    jobs = []
    parts = supply.mix_of(source).parts
    for number, (part, rows) in enumerate(zip(parts, supply.opened(source, lambda each: each.rows), strict=True)):
        drawn = None
        if rules.sample is not None:
            wanted = -(-rules.sample // len(parts))
            hashes = hashed(cfg["seed"], SAMPLE, number, np.arange(min(wanted, len(rows))))
            drawn = filtering.spread(len(rows), wanted, hashes)
        name = part.name if source.mix else ""
        jobs.append(Job(name, part.source, rows, drawn, rules, cfg["seed"], Path(cfg["output_dir"])))
    return jobs


def made_by(job: Job, model: str) -> str:
    """A name for all that decides what becomes of a row."""
    facts = [job.rules._asdict(), model, job.source.query_max_len, job.source.passage_max_len, job.seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def on_one_rank(used: encode.Encoder, tokenizer: Any) -> Embed:
    """A function that embeds on the rank that calls it, without the others; it refuses what is not finite."""

    def embedded(texts: Sequence[str], max_len: int) -> np.ndarray:
        rows = encode.embed(used, tokens.tokenize(tokenizer, texts, max_len)).float().cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise ValueError(f"{len(bad)} of {len(rows)} embeddings are not finite, the first that of {texts[bad[0]][:60]!r}")
        return rows

    return embedded


def one_source(job: Job, embedder: Embed, world: World) -> None:
    """Goes through the parts of a source that are not done yet, this rank through its share of them."""
    left = distributed.from_first(missing(job) if world.rank == 0 else None, world)
    if not left:
        return
    pool = None if job.rules.top_k is None else pool_of(job, embedder, world)
    size = job.rules.rows_per_part
    title = f"filter {job.name}".rstrip()
    with embed.track(title, len(left) * size, world) as advance:
        # a round at a time: no rank gets so far ahead that it would wait for the others beyond the timeout
        for first in range(0, len(left), world.size):
            mine = left[first + world.rank : first + world.rank + 1]
            for part in mine:
                one_part(job, part, embedder, pool, world)
            distributed.barrier(world)
            advance(min(world.size, len(left) - first) * size)


def missing(job: Job) -> list[int]:
    """The parts that have no counts yet.

    Raises:
        ValueError: there are counts of other rows, or made by other rules.
    """
    left = []
    for part in range(job.parts()):
        path = job.file("counts", part, "json")
        if not path.exists():
            left.append(part)
            continue
        known = json.loads(path.read_text("utf8"))
        if known["made_by"] != job.made_by or known["counts"]["rows"] != len(job.places(part)):
            raise ValueError(f"{path} is of another model, other keys of `filter` or other rows: start anew with resume=never")
    return left


def one_part(job: Job, part: int, embedder: Embed, pool: filtering.Pool | None, world: World) -> None:
    """Scores the rows of a part and writes what is kept, what is dropped and, last, the counts."""
    places = job.places(part)
    rows = job.rows.take(places)
    owners = np.repeat(np.arange(len(rows)), [len(row.positives) for row in rows])
    texts = [positive for row in rows for positive in row.positives]
    queries = embedder([job.rules.query_instruction + row.query for row in rows], job.source.query_max_len)
    passages = embedder([job.rules.passage_instruction + text for text in texts], job.source.passage_max_len)
    similarity = filtering.similarities(queries, passages, owners)
    rank = None
    if pool is not None:
        rank = filtering.ranks(queries, passages, owners, keys(texts).numpy(), pool, world.device)
    why = filtering.faults(similarity, rank, job.rules)
    if job.drawn is None:
        for kind in ("dropped", "kept"):
            lines = filtering.lines(rows, similarity, rank, why, kept=kind == "kept")
            if lines:
                write(job.file(kind, part, "jsonl"), "".join(lines))
    sources = [job.name] * len(places) if job.name else files_of(job.rows, places)
    counts = tally.counted(owners, similarity, rank, why, sources)
    write(job.file("counts", part, "json"), json.dumps({"made_by": job.made_by, "counts": counts}))


def pool_of(job: Job, embedder: Embed, world: World) -> filtering.Pool:
    """Embeds the pool, each rank some shards of it, and maps the files of all.

    Raises:
        ValueError: it has no more passages than would count as found.
    """
    count = min(job.rules.pool, len(job.rows))
    drawn = filtering.spread(len(job.rows), count, hashed(job.seed, POOL, np.arange(count)))
    shards = range(-(-count // SHARD))
    for shard in shards[world.rank :: world.size]:
        if not job.file(f"pool/{job.made_by}", shard, "keys.npy").exists():
            rows = drawn[shard * SHARD : (shard + 1) * SHARD].tolist()
            chosen = hashed(job.seed, PASSAGE, np.array(rows)).tolist()
            taken = zip(job.rows.take(rows), chosen, strict=True)
            texts = [row.positives[number % len(row.positives)] for row, number in taken]
            instructed = [job.rules.passage_instruction + text for text in texts]
            save_array(job.file(f"pool/{job.made_by}", shard, "npy"), embedder(instructed, job.source.passage_max_len))
            save_array(job.file(f"pool/{job.made_by}", shard, "keys.npy"), keys(texts).numpy())
    distributed.barrier(world)
    embeddings = [np.load(job.file(f"pool/{job.made_by}", shard, "npy"), mmap_mode="r") for shard in shards]
    pool = filtering.pooled(
        embeddings, np.concatenate([np.load(job.file(f"pool/{job.made_by}", shard, "keys.npy")) for shard in shards])
    )
    if job.rules.top_k is not None and len(pool.keys) <= job.rules.top_k:
        raise ValueError(
            f"filter.top_k={job.rules.top_k} of a pool of {len(pool.keys)} different passages keeps every pair: "
            f"{job.source.name} has {len(job.rows)} rows; use fewer, or filter.top_k=null"
        )
    return pool


def save_array(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as handle:
        np.save(handle, values)
    beside.replace(path)


def added(job: Job) -> dict[str, Any]:
    """The counts of all parts of a source."""
    total: dict[str, Any] = {}
    for part in range(job.parts()):
        total = tally.plus(total, json.loads(job.file("counts", part, "json").read_text("utf8"))["counts"])
    return total
