"""Embeddings by a model as it is: of the corpus and queries of a stage, of a batch by a guide."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bgetrain import distributed
from bgetrain.data import tokenize as tokens
from bgetrain.logger import console
from bgetrain.model.bi_encoder import BiEncoder
from bgetrain.model.body import Body, pretrained
from bgetrain.model.packed import can_pack
from bgetrain.search import encode
from bgetrain.search.blocks import Ranked
from bgetrain.search.encode import Encoder
from bgetrain.search.shards import Embeddings
from bgetrain.sources import Retrieval, Source
from bgetrain.stage import build
from bgetrain.target import call
from bgetrain.types import Ragged, World

# keys of a transformers config that say where a model comes from, or what the fingerprint has already
UNRELATED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def bi_encoder(made: Body, world: World, *, learnable_temperature: bool = False) -> BiEncoder:
    """The encoder of queries and passages; it takes packed chunks where it can."""
    packed = can_pack(made.backbone, world.device)
    return BiEncoder(made.backbone, made.pooling, packed=packed, learnable_temperature=learnable_temperature)


class Guide(NamedTuple):
    """A model that is not trained and judges candidates.

    Attributes:
        tokenizer: its own.
        embed: texts -> fp32 [N, D'], unit rows.
    """

    tokenizer: Any
    embed: Callable[[Ragged], Tensor]


def loaded(cfg: build.Config) -> Body:
    try:
        return pretrained(
            cfg["guide_model"],
            tokenizer=None,
            dropout=None,
            pooling="auto",
            gradient_checkpointing=False,
            trust_remote_code=cfg["model"].get("trust_remote_code", False),
            lora=None,
            lora_scale=1.0,
            lora_dropout=0.0,
            masked_lm=False,
            seed=cfg["seed"],
            vocabulary=lambda *_: None,
        )
    except ValueError as error:  # in whose words it is model.path
        raise ValueError(str(error).replace("model.path=", "guide_model=")) from error


def encoder(cfg: build.Config, made: Body, world: World) -> Encoder:
    """The model as it is, on the rank's device, and how its texts are cut into chunks."""
    module = bi_encoder(made, world).to(world.device, build.dtype(cfg, world)).eval()
    pad_id = None if module.packed else made.tokenizer.pad_token_id
    return Encoder(
        module,
        made.tokenizer,
        cut=lambda lengths: tokens.cut(lengths, cfg["chunk_tokens"], padded=not module.packed),
        chunk=lambda text, group: tokens.chunk(text, group, pad_id),
        device=world.device,
    )


def guide(cfg: build.Config, opened: Source, world: World) -> Guide:
    """Loads the model of `guide_model`; every rank holds it whole.

    Raises:
        ValueError: it cannot be loaded, or has too few positions.
    """
    made = distributed.after_first(world, lambda: loaded(cfg))
    longest = max(opened.query_max_len, opened.passage_max_len)
    if longest > made.max_positions:
        raise ValueError(
            f"guide_model={cfg['guide_model']} has {made.max_positions} positions, the data's texts up to {longest} tokens"
        )
    return Guide(made.tokenizer, partial(encode.embed, encoder(cfg, made, world)))


class Embedded(NamedTuple):
    """A retrieval set as a model sees it.

    Attributes:
        queries: of Q texts, instruction included.
        passages: of C texts.
    """

    queries: Embeddings
    passages: Embeddings


def embedded(cfg: build.Config, made: Body, opened: Source, retrieval: Retrieval, world: World) -> Embedded:
    """Embeds a corpus and its queries over all ranks into `embeddings_cache`, or finds them there.

    Raises:
        ValueError: an embedding is not finite.
    """
    used = encoder(cfg, made, world)
    model = distributed.from_first(model_key(cfg, made, used, world) if world.rank == 0 else "", world)
    cache = Path(cfg["embeddings_cache"] or Path(cfg["output_dir"]) / "embeddings").expanduser()

    def run(take: Callable[[range], Sequence[str]], total: int, max_len: int, what: str) -> Embeddings:
        with track(f"encode {what}", total, world) as advance:
            return encode.encode(
                used,
                take,
                total,
                tokenize=lambda texts: tokens.tokenize(made.tokenizer, texts, max_len),
                folder=cache / f"{model}-{max_len}",
                world=world,
                advance=advance,
            )

    texts = instructed(retrieval, opened.query_instruction)
    passages = run(retrieval.passages.take, len(retrieval.passages), opened.passage_max_len, "passages")
    return Embedded(run(lambda part: texts[part.start : part.stop], len(texts), opened.query_max_len, "queries"), passages)


def model_key(cfg: build.Config, made: Body, used: Encoder, world: World) -> str:
    """Names all that embeddings depend on but their texts and the length where these are cut.

    `chunk_tokens`, the device and its kernels are left out: they change the last digits alone, and a run that goes on with
    other chunks should find what it has done.
    """
    config = made.backbone.config.to_dict()
    facts = {
        "tokenizer": tokens.contents(made.tokenizer),
        "truncation_side": made.tokenizer.truncation_side,
        "config": {name: value for name, value in config.items() if name not in UNRELATED and "drop" not in name},
        "pooling": made.pooling,
        "precision": build.precision(cfg, world),
    }
    return encode.fingerprint_of_model(used.module, facts)


def ranked(cfg: build.Config, found: Embedded, k: int, world: World) -> Ranked:
    """The k best passages of each query by the `search` of the config, each rank with its share of the queries."""
    with track("search", found.queries.total * found.passages.total, world) as advance:
        made: Ranked = call(cfg["search"], *found, k, world=world, advance=advance)
    if made.recall is not None and world.rank == 0:
        console.say(f"search: {100 * made.recall:.1f} % of what exact search finds, on a sample of queries")
    return made


@contextlib.contextmanager
def track(description: str, total: int, world: World) -> Iterator[Callable[[int], None]]:
    """Rank 0's progress; the others' goes nowhere."""
    if world.rank > 0:
        yield lambda _: None
        return
    with console.track(description, total) as advance:
        yield advance


def instructed(retrieval: Retrieval, instruction: str) -> list[str]:
    """The queries with their own prompt, or else the source's instruction, before them."""
    pairs = zip(retrieval.prompts, retrieval.queries, strict=True)
    return [(instruction if prompt is None else prompt) + query for prompt, query in pairs]
