"""stage=search: a corpus that is embedded once and then asked in words, at a terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import distributed
from bgetrain.cluster import local, pulse
from bgetrain.cluster.place import Command, Place
from bgetrain.data import tokenize as tokens
from bgetrain.logger import console, passages
from bgetrain.model.prompts import Prompts, prompts_of
from bgetrain.search import encode, kept
from bgetrain.search.blocks import Ranked
from bgetrain.search.encode import Encoder
from bgetrain.search.shards import Embeddings, held
from bgetrain.sources import Corpus, Source
from bgetrain.stage import build, embed
from bgetrain.target import call
from bgetrain.types import World

PROMPT = "search> "
LEAVES = (":q", ":quit")
SHOWN = 60  # letters of a query or a prompt that a message repeats
HISTORY_LINES = 1000


class Opened(NamedTuple):
    """A model and a corpus, ready to be brought together.

    Attributes:
        source: the data.
        corpus: its passages.
        encoder: the model as it is.
        prompts: put before every query and every passage.
        folder: of the files with the passages' embeddings.
        note: where it is written which of these files they are.
        world: the ranks that have opened it.
    """

    source: Source
    corpus: Corpus
    encoder: Encoder
    prompts: Prompts
    folder: Path
    note: Path
    world: World


def run(cfg: Mapping[str, Any], command: Command) -> int:
    """Embeds the passages that are not yet embedded, on all ranks, and answers queries on the first; returns the exit status.

    The other ranks have left by then: who thinks about the next query keeps nobody waiting.

    Args:
        cfg: the resolved config, as `conf/stage/search.yaml` has it.
        command: that starts one more rank.

    Raises:
        ValueError: model, data or a query cannot be used.
    """
    queries = asked(cfg)
    local.prepare()
    cluster = cfg["cluster"]
    limits, port = (cluster["timeout_minutes"], cluster["heartbeat_seconds"]), cluster["port"]
    place = local.joined(*limits, port)
    if place and place.size > 1:
        opened = together(cfg, place)
        if place.rank > 0 or local.launched():
            return 0
        opened = opened._replace(world=World(0, 1, 0, 1, opened.world.device))
    else:
        opened = opened_by(cfg, started(place or local.alone(*limits)))
    found = recalled(opened)
    count = 1 if place else cfg["num_processes"] or local.count_devices()
    if found is None and count > 1:
        status = local.start_ranks(command.line, count, local.free_port() if port is None else local.claimed_port(port))
        if status:
            return status
    if found is None:
        found = index(opened, tell=count == 1 and not (place and place.size > 1))
    else:
        console.say(f"{found.total:,} passages, embedded before (cached in {opened.folder})")
    answer = answering(cfg, opened, found)
    for query in queries:
        answer(query)
    if not queries:
        converse(answer, Path(cfg["output_dir"]).expanduser() / "history")
    return 0


def asked(cfg: Mapping[str, Any]) -> list[str]:
    """The queries of the command line; none where a prompt is to ask for them.

    Raises:
        ValueError: a query without text, or a config that cannot be answered here.
    """
    if "path" not in cfg["model"]:
        raise ValueError("stage=search needs a model that is trained: use model=pretrained model.path=FOLDER_OR_HUB_ID")
    if "sbatch_lines" in cfg["cluster"]:
        raise ValueError("stage=search answers at the terminal where it is typed: use cluster=local, inside salloc too")
    queries = cfg["query"] if isinstance(cfg["query"], list) else [] if cfg["query"] is None else [cfg["query"]]
    if isinstance(cfg["query"], list) and not queries:
        raise ValueError("query=[] lists no query: give texts, or query=null for a prompt")
    for query in queries:
        if not query.strip():
            raise ValueError(f"query={query!r} is empty: give the words to look for, or leave query out for a prompt")
    return queries


def started(place: Place) -> World:
    """This rank's world, joined by all."""
    return distributed.start(
        place.rank, place.size, place.local_rank, place.local_size, place.timeout_minutes,
        threads=place.threads, has_own_gpus=place.has_own_gpus, meet=place.meet,
    )  # fmt: skip


def together(cfg: Mapping[str, Any], place: Place) -> Opened:
    """Embeds what is not yet embedded on several ranks, this one among them."""
    world = started(place)
    limits = {"heartbeat_seconds": place.heartbeat_seconds, "timeout_minutes": place.timeout_minutes}
    with pulse.beating(world, folder=Path(cfg["output_dir"]).expanduser() / "stacks", **limits):
        opened = opened_by(cfg, world)
        index(opened, tell=True)
        distributed.barrier(world)
    return opened


def opened_by(cfg: Mapping[str, Any], world: World) -> Opened:
    """Opens data and model on all ranks.

    Raises:
        ValueError: one of them cannot be used.
    """
    source: Source = distributed.after_first(world, lambda: call(cfg["data"]))
    open_corpus = build.need(source.corpus, source, cfg, "passages", "data=beir, data=pydocs, data=jsonl or data=text")
    corpus, made, prompts = build.all_of(
        lambda: distributed.after_first(world, open_corpus),
        lambda: build.body(cfg, source, world, masked_lm=False),
        lambda: prompts_of(str(Path(cfg["model"]["path"]).expanduser())),
    )
    if not len(corpus.passages):
        raise ValueError(f"{source.name} has no passages: there is nothing to search")
    used = embed.encoder(cfg, made, world)
    model = distributed.from_first(embed.model_key(cfg, made, used, world) if world.rank == 0 else "", world)
    cache = Path(cfg["embeddings_cache"] or Path(cfg["output_dir"]) / "embeddings").expanduser()
    folder = cache / f"{model}-{source.passage_max_len}"
    prompts = Prompts(source.query_instruction or prompts.query, prompts.passage)
    note = kept.note_of(folder, {"corpus": corpus.key, "prefix": prompts.passage})
    return Opened(source, corpus, used, prompts, folder, note, world)


def recalled(opened: Opened) -> Embeddings | None:
    """The embeddings of all passages, where an earlier search has noted them."""
    return kept.found(opened.note, len(opened.corpus.passages), encode.width(opened.encoder.module))


def index(opened: Opened, *, tell: bool) -> Embeddings:
    """Embeds the passages that are in no file yet, over all ranks, and says so; where there is one rank the files are noted."""
    began, world, total = time.perf_counter(), opened.world, len(opened.corpus.passages)
    names: list[str] = []
    new = 0

    def met(block: encode.Read) -> None:
        nonlocal new
        names.append(block.path.name)
        new += len(block.texts) * (block.text is not None)

    def take(part: range) -> list[str]:
        return [opened.prompts.passage + text for text in opened.corpus.passages.take(part)]

    try:
        with embed.track("embed passages", total, world) as advance:
            found = encode.encode(
                opened.encoder,
                take,
                total,
                tokenize=lambda texts: tokens.tokenize(opened.encoder.tokenizer, texts, opened.source.passage_max_len),
                folder=opened.folder,
                world=world,
                advance=advance,
                met=met,
            )
        if world.size == 1:
            kept.keep(opened.note, names)
    except OSError as error:
        where = f"{opened.folder} ({error.strerror})"
        raise ValueError(f"embeddings cannot be kept in {where}: choose another embeddings_cache") from error
    new = sum(distributed.gather_objects(new, world))
    if tell and world.rank == 0:
        what = f"{total:,}" if new == total else f"{new:,} new of {total:,}"
        ranks = f" on {world.size} ranks" if world.size > 1 else ""
        took = console.duration(time.perf_counter() - began)
        console.say(f"indexed {what} passages in {took}{ranks} (cached in {opened.folder})")
    return found


def answering(cfg: Mapping[str, Any], opened: Opened, found: Embeddings) -> Callable[[str], None]:
    """What shows the best passages of a query."""
    limit, inside = opened.source.query_max_len, opened.encoder
    if opened.prompts.query:
        console.say(f"queries begin with {brief(opened.prompts.query)}")

    def answer(query: str) -> None:
        began = time.perf_counter()
        query = query.encode("utf8", "replace").decode()  # a terminal may hand over half a letter, which no tokenizer takes
        text = tokens.tokenize(inside.tokenizer, [opened.prompts.query + query], limit + 1)
        if int(text.lengths[0]) > limit:
            console.say(f"{brief(query)} is longer than data.query_max_len={limit} tokens: the rest is not looked for")
            text = tokens.tokenize(inside.tokenizer, [opened.prompts.query + query], limit)
        vectors = held(encode.embed(inside, text).float().cpu().numpy(), opened.world)
        ranked = nearest(cfg, vectors, found, opened.world)
        places = [place for place in ranked.places[0].tolist() if place >= 0]
        listed = zip(ranked.scores[0].tolist(), opened.corpus.where(places), opened.corpus.passages.take(places), strict=False)
        hits = [passages.Hit(*each) for each in listed]
        if cfg["format"] == "json":
            passages.as_json(query, hits)
            return
        took = time.perf_counter() - began
        passages.show(f"{brief(query)}: {len(hits)} of {found.total:,} passages, {took:.2f} s", query, hits)

    return answer


def nearest(cfg: Mapping[str, Any], vectors: Embeddings, found: Embeddings, world: World) -> Ranked:
    made: Ranked = call(cfg["search"], vectors, found, cfg["top_k"], world=world, advance=lambda _: None)
    return made


def brief(text: str) -> str:
    """A text as a message repeats it."""
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}...")


def converse(answer: Callable[[str], None], history: Path) -> None:
    """Answers each query that is typed, or each line of a file or pipe, until the end.

    Args:
        answer: shows the passages of a query.
        history: file of what was typed, for the arrow keys.

    Raises:
        ValueError: standard input is empty.
    """
    if not sys.stdin.isatty():
        lines = [line.strip() for line in sys.stdin]
        if not any(lines):
            raise ValueError('no query: add query="...", or hand over queries on standard input, a line each')
        for line in filter(None, lines):
            answer(line)
        return
    console.say("Type what you look for; :q or Ctrl-D leaves.")
    with remembered(history), contextlib.suppress(KeyboardInterrupt, EOFError):
        while (line := input(PROMPT).strip()) not in LEAVES:
            if not line:
                continue
            try:
                answer(line)
            except ValueError as error:
                console.say(f"bgetrain: {' '.join(str(error).split())}")
        return
    print()


@contextlib.contextmanager
def remembered(history: Path) -> Iterator[None]:
    """Line editing, and a history that the next search goes on with; where Python has no readline, neither."""
    try:
        import readline
    except ImportError:
        yield
        return
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)
