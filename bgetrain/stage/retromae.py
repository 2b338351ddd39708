"""stage=retromae: masked auto-encoding pre-training (RetroMAE, arXiv:2205.12035; DupMAE, arXiv:2305.02564)."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bgetrain import distributed
from bgetrain.data.masking import Masking
from bgetrain.data.texts import text_batch
from bgetrain.data.tokenize import tokenize_words
from bgetrain.model import decoder_folder
from bgetrain.model.body import Body
from bgetrain.model.dropout import replace_dropout
from bgetrain.model.retromae import RetroMAE
from bgetrain.stage import build, masked, preflight, results, supply, validation
from bgetrain.target import call
from bgetrain.types import Objective, World


def run(cfg: Mapping[str, Any], world: World, log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Trains an encoder to reconstruct texts; leaves it, with its masked-LM head, in `output_dir/model`, its decoder beside.

    Args:
        cfg: the resolved config, as `conf/stage/retromae.yaml` has it.
        world: all ranks.
        log: called on rank 0.

    Returns:
        Figures for `result.json`.

    Raises:
        ValueError: data or model cannot be used as asked.
    """
    source = build.source(cfg, world)
    build.need(source.texts, source, cfg, "texts", "data=text, data=beir or data=pydocs")
    texts, body = build.all_of(
        lambda: distributed.after_first(world, lambda: supply.opened(source, lambda each: each.texts)),
        lambda: build.body(cfg, source, world, masked_lm=True),
    )
    check(body.tokenizer)
    found = validation.opened(cfg, source, world)
    objective: Objective = call(cfg["loss"])
    module, origin = model_of(cfg, body, objective)
    if world.device.type == "cpu":
        replace_dropout(module)
    supplied, held = supply.pretraining(cfg, source, texts, body.tokenizer, world)
    engine, schedule = build.engine(cfg, module, world)
    words = {"mask_id": body.tokenizer.mask_token_id, "vocab_size": len(body.tokenizer), "seed": cfg["seed"]}
    masking: Masking = call(cfg["masking"], **words)
    trained = masked.Trained(engine, objective, masking, world)
    shape = (cfg["chunk_tokens"], body.tokenizer.pad_token_id)
    clean_at = partial(text_batch, supplied.feeds, supplied.plan, partial(distributed.share, world=world))
    batch_at = partial(masked.chunked, clean_at, *shape)
    first_step = build.resumed(cfg, engine, lambda: masked.probe(trained, batch_at(1)))
    foreseen = batch_at(first_step)
    facts = {
        **supplied.facts,
        **announced(cfg, objective, origin),
        **lengths_told(cfg, foreseen.lengths >= source.passage_max_len),
    }
    facts |= {
        "tokens per step": f"about {int(foreseen.lengths.sum()) * supplied.plan.size(first_step) // len(foreseen.lengths):,}",
        "steps": f"{first_step} to {supplied.total_steps} ({supplied.plan.epoch(supplied.total_steps + 1):.2f} epochs)",
    }
    steps = range(first_step, supplied.total_steps + 1)
    trial = partial(preflight.reconstructed, trained, foreseen, source.passage_max_len, cfg["chunk_tokens"])
    facts |= preflight.checked(cfg, preflight.Start(engine, body.tokenizer, source.files, steps, foreseen, trial), world)
    forward, width = partial(masked.embeddings_of, engine, body.pooling), body.backbone.config.hidden_size
    subject = validation.Subject(engine.core.module, forward, body.tokenizer, body.tokenizer.pad_token_id, width)
    held_out = None
    if held is not None:
        score = partial(masked.scored, trained, masked.chunks_of(held, *shape))
        held_out = validation.HeldOut(score, cfg["evaluate"]["held_out"] * len(texts), "texts")
    scoring, told = validation.scoring(cfg, source, found, subject, held_out, supplied.total_steps, world)
    build.announce(cfg, body, engine, supplied.sizes, facts | told, world)
    del foreseen, trial
    update, describe = partial(masked.update_once, trained), partial(masked.described, body.tokenizer)
    figures = build.train(cfg, engine, batch_at, update, steps, schedule, log, world, describe, scoring)
    save(cfg, trained, body, source, world)
    return {"steps": int(figures["steps"]), "texts": sum(len(feed.tokens) for feed in supplied.feeds), "training": figures}


def check(tokenizer: Any) -> None:
    """Holds a tokenizer against what masked auto-encoding needs.

    Raises:
        ValueError: it has no mask token, or puts none before a text whose state could be the embedding.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError("model.tokenizer has no mask token, which stage=retromae needs: choose a masked language model")
    text, words = tokenize_words(tokenizer, ["a"], 8)
    if int(words[0]) != -1:
        first = int(text.ids[0])
        raise ValueError(
            f"model.tokenizer puts no special token before a text ({tokenizer.convert_ids_to_tokens(first)!r} comes first), and "
            "stage=retromae makes the embedding of it: choose a tokenizer that adds [CLS] or <s>"
        )


def model_of(cfg: Mapping[str, Any], body: Body, objective: Objective) -> tuple[RetroMAE, str]:
    """The encoder and the decoder that trains it, and where the decoder's weights come from, in words.

    Raises:
        ValueError: a backbone that has no decoder here, or a decoder of another shape.
    """
    torch.manual_seed(cfg["seed"])  # fresh weights, alike on every rank
    module = RetroMAE(body.backbone, query=objective.query, bag_of_words=objective.bag_of_words)
    if module.decoder is None:
        return module, "none"
    path, asked = cfg["model"].get("path"), cfg["decoder"]
    folder = Path(path).expanduser().parent / "decoder" if path and asked == "auto" else Path(asked).expanduser()
    if asked == "fresh" or (asked == "auto" and not (folder / decoder_folder.WEIGHTS).is_file()):
        return module, "fresh weights"
    kind = body.backbone.config.model_type
    saved = decoder_folder.load(folder, module.decoder)
    if saved["model_type"] != kind:
        raise ValueError(
            f"{folder}: was trained beside {saved['model_type']!r}, but the model is {kind!r}; {decoder_folder.FRESH}"
        )
    before = "" if saved["query"] == objective.query else f", trained with query {saved['query']}"
    return module, f"goes on from {folder}{before}"


def announced(cfg: Mapping[str, Any], objective: Objective, origin: str) -> dict[str, str]:
    """What is predicted from what, in words."""
    encoder, decoder = (f"{cfg['masking'][key]:.0%}" for key in ("encoder_ratio", "decoder_ratio"))
    if objective.query is None:
        return {"masked": f"{encoder} of the encoder's tokens"}
    return {
        "masked": f"{encoder} of the encoder's tokens, {decoder} of the decoder's",
        "decoder": f"query {objective.query}, {origin}",
    }


def lengths_told(cfg: Mapping[str, Any], full: torch.Tensor) -> dict[str, str]:
    """How many texts are as long as allowed, bool [N], where what is longer is cut away."""
    if cfg["documents"]["cut"] != "truncate" or not full.any():
        return {}
    share = f"{float(full.float().mean()):.0%} of the texts of this batch, or cut; documents.cut=sentences would keep all of them"
    return {"as long as allowed": share}


def save(cfg: Mapping[str, Any], trained: masked.Trained, body: Body, source: Any, world: World) -> None:
    """Writes `model/` and, where there is a decoder, `decoder/`; all ranks call it."""
    weights = results.weights_to_keep(cfg, trained.engine)
    results.write_weights(cfg, weights, body, "lm.", source, world)
    own = {name.removeprefix("decoder."): each for name, each in weights.items() if name.startswith("decoder.")}
    decoder, query = trained.engine.core.module.decoder, trained.objective.query
    if query is not None and world.rank == 0:
        kind = body.backbone.config.model_type
        with results.written(cfg, "decoder") as folder:
            decoder_folder.save(folder, own, query=query, model_type=kind, num_heads=decoder.num_heads)
    distributed.barrier(world)
