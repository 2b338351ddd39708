"""Embeddings by a model as it is: of the corpus and queries of a stage, of a batch by a guide."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgetrain.data import tokenize as tokens
from bgetrain.logger import console
from bgetrain.model.bi_encoder import BiEncoder
from bgetrain.model.body import Body, pretrained
from bgetrain.model.packed import can_pack
from bgetrain.search.encode import encode
from bgetrain.stage import build
from bgetrain.types import Ragged, Retrieval, Source, World


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
            lora=None,
            lora_scale=1.0,
            lora_dropout=0.0,
            masked_lm=False,
            seed=cfg["seed"],
            vocabulary=lambda *_: None,
        )
    except ValueError as error:  # in whose words it is model.path
        raise ValueError(str(error).replace("model.path=", "guide_model=")) from error


def guide(cfg: build.Config, opened: Source, world: World) -> Guide:
    """Loads the model of `guide_model`; every rank holds it whole.

    Raises:
        ValueError: it cannot be loaded, or has too few positions.
    """
    made = build.first(world, lambda: loaded(cfg))
    longest = max(opened.query_max_len, opened.passage_max_len)
    if longest > made.max_positions:
        raise ValueError(
            f"guide_model={cfg['guide_model']} has {made.max_positions} positions, the data's texts up to {longest} tokens"
        )
    module = bi_encoder(made, world).to(world.device, build.dtype(cfg, world)).eval()
    pad_id = None if module.packed else made.tokenizer.pad_token_id

    def embed(text: Ragged) -> Tensor:
        rows: list[Tensor] = []
        groups = tokens.cut(text.lengths, cfg["chunk_tokens"], padded=not module.packed)
        with torch.no_grad():
            for group in groups:
                rows.append(module(None, *(build.on_device(each, world) for each in tokens.chunk(text, group, pad_id)))[0])
        embeddings = torch.cat(rows)
        found = torch.empty_like(embeddings)
        found[torch.cat(groups).to(world.device)] = embeddings
        return found

    return Guide(made.tokenizer, embed)


def encoder(cfg: build.Config, made: Body, opened: Source, world: World) -> Callable[[list[str], int, str], np.ndarray]:
    """A function (texts, max_len, description) -> fp32 [N, D] that embeds with the model as it is, over all ranks."""
    module = bi_encoder(made, world).to(world.device, build.dtype(cfg, world)).eval()
    pad_id = None if module.packed else made.tokenizer.pad_token_id

    def embed(texts: list[str], max_len: int, description: str) -> np.ndarray:
        shown = console.track(description, len(texts)) if world.rank == 0 else contextlib.nullcontext(lambda _: None)
        with shown as advance:
            return encode(
                texts,
                module,
                tokenize=lambda block: tokens.tokenize(made.tokenizer, block, max_len),
                cut=lambda lengths: tokens.cut(lengths, cfg["chunk_tokens"], padded=not module.packed),
                chunk=lambda text, group: tokens.chunk(text, group, pad_id),
                world=world,
                advance=advance,
            )

    return embed


def instructed(retrieval: Retrieval, instruction: str) -> list[str]:
    """The queries with their own prompt, or else the source's instruction, before them."""
    pairs = zip(retrieval.prompts, retrieval.queries, strict=True)
    return [(instruction if prompt is None else prompt) + query for prompt, query in pairs]
