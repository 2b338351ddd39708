"""The passes of each stage over one chunk, rehearsed: encoder, masked auto-encoder, and a model as it is."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bgetrain.forecast.rehearsal import Pass, key, rehearse
from bgetrain.loss import retromae as objectives
from bgetrain.loss import vocabulary
from bgetrain.model import lora as low_rank
from bgetrain.model.bi_encoder import BiEncoder
from bgetrain.model.body import checkpoint_activations
from bgetrain.model.dropout import replace_dropout
from bgetrain.model.packed import can_pack
from bgetrain.model.retromae import RetroMAE
from bgetrain.types import Objective, Predictions, Totals

# n texts of a chunk, L tokens each

ELSEWHERE = "meta"


class Encoder(NamedTuple):
    """What an encoder's module follows from.

    Attributes:
        config: of transformers.
        pooling: cls | mean | last.
        lora: rank of adapters that alone are trained; None: all weights are.
    """

    config: Any
    pooling: str
    lora: int | None


class Setting(NamedTuple):
    """Where and how a module runs.

    Attributes:
        device: cpu | cuda, whose kernels are meant.
        dtype: of the forward pass.
        checkpointing: each layer's activations are computed anew.
        padded: texts of a chunk differ in length, so that there is a mask.
    """

    device: str
    dtype: torch.dtype
    checkpointing: bool
    padded: bool


def backbone(encoder: Encoder, setting: Setting, *, masked_lm: bool) -> Any:
    """An encoder of transformers as `model.body` leaves it, on the meta device."""
    from transformers import AutoModel, AutoModelForMaskedLM

    factory = AutoModelForMaskedLM if masked_lm else AutoModel
    with torch.device(ELSEWHERE):
        made = factory.from_config(copy.deepcopy(encoder.config))  # the model keeps it, and notes its attention there
        if getattr(made, "pooler", None) is not None:
            made.pooler = None
        if setting.checkpointing:
            checkpoint_activations(made)
        if encoder.lora:
            low_rank.adapt(made, path="", rank=encoder.lora, scale=2, dropout=0.1, seed=0)
    return made


def bi_encoder(encoder: Encoder, setting: Setting, *, learnable_temperature: bool = False) -> BiEncoder:
    """The trained module of contrastive stages."""
    made = backbone(encoder, setting, masked_lm=False)
    packed = can_pack(made, torch.device(setting.device))
    with torch.device(ELSEWHERE):
        module = BiEncoder(made, encoder.pooling, packed=packed, learnable_temperature=learnable_temperature)
    return module.to(setting.dtype)


def auto_encoder(encoder: Encoder, setting: Setting, objective: Objective) -> RetroMAE:
    """The trained module of masked auto-encoding."""
    made = backbone(encoder, setting, masked_lm=True)
    with torch.device(ELSEWHERE):
        module = RetroMAE(made, query=objective.query, bag_of_words=objective.bag_of_words)
    if setting.device == "cpu":
        replace_dropout(module)
    return module.to(setting.dtype)


def encoded(module: BiEncoder, setting: Setting, texts: int, length: int, *, training: bool) -> Pass:
    """A chunk of n texts of L tokens through the encoder.

    Args:
        module: of `bi_encoder`.
        setting: the same.
        texts: n.
        length: L.
        training: with a backward pass, and dropout.
    """
    module.train(training)
    empty = partial(torch.empty, device=ELSEWHERE)
    lists: dict[int, list[int]] = {}
    if module.packed:
        lengths = empty(texts, dtype=torch.int64)
        lists[key(lengths)] = [length] * texts
        chunk: tuple[Tensor, Tensor | None] = (empty(texts * length, dtype=torch.int64), lengths)
    else:
        mask = empty(texts, length, dtype=torch.bool) if setting.padded and texts > 1 else None
        chunk = (empty(texts, length, dtype=torch.int64), mask)
    seeds = [0] if training else None
    forward = lambda: module(seeds, *chunk)[0]  # noqa: E731
    return rehearse(module, forward, device=setting.device, found={}, lists=lists, backward=training)


def rebuilt(
    module: RetroMAE, setting: Setting, objective: Objective, texts: int, length: int, *, ratio: float, specials: int
) -> Pass:
    """A chunk of n texts of L tokens through the masked auto-encoder and its loss.

    Args:
        module: of `auto_encoder`.
        setting: the same.
        objective: what it is trained for.
        texts: n.
        length: L.
        ratio: of the tokens that the encoder predicts.
        specials: special tokens of a text.
    """
    module.train()
    empty = partial(torch.empty, texts, device=ELSEWHERE)
    predicted, real = round(texts * length * ratio), texts * (length - specials)
    ids, encoder_at = empty(length, dtype=torch.int64), empty(length, dtype=torch.bool)
    decoder_at, visible = empty(length, dtype=torch.bool), empty(length, length, dtype=torch.bool)
    mask = empty(length, dtype=torch.bool) if setting.padded and texts > 1 else None
    found = {key(encoder_at): predicted, key(decoder_at): real}
    totals = Totals(predicted, real, texts)
    score: Any = partial(with_bag if objective.bag_of_words else objective.score, totals=totals)
    forward = lambda: module(score, ids, mask, encoder_at, ids, visible, decoder_at)[0]  # noqa: E731
    with slices_of(setting.device):
        passed = rehearse(module, forward, device=setting.device, found=found, lists={}, backward=True)
    held = visible.numel()  # by the step, until the pass is done
    return passed._replace(
        kept=passed.kept + held, forward=passed.forward + held, peak=passed.peak + held, fresh=passed.fresh + held
    )


@contextmanager
def slices_of(device: str) -> Iterator[None]:
    """Slices of the vocabulary's logits as large as they are on a device."""
    vocabulary.ELEMENTS[ELSEWHERE] = vocabulary.ELEMENTS.get(device, vocabulary.ELEMENTS_ELSEWHERE)
    try:
        yield
    finally:
        del vocabulary.ELEMENTS[ELSEWHERE]


def with_bag(
    predictions: Predictions, weight: Tensor, bias: Tensor | None, *, totals: Totals
) -> tuple[Tensor, dict[str, Tensor]]:
    """DupMAE's loss with the shapes of its bag of words, which finds its way by what the tokens are."""
    loss, metrics = objectives.reconstruction(predictions, weight, bias, totals=totals)
    assert predictions.words is not None
    return loss + BagShapes.apply(predictions.words, weight, predictions.num_texts), metrics


class BagShapes(torch.autograd.Function):
    """What `loss.bag_of_words` holds: gradients in fp32, a slice of logits, and each word's best state in a slice's texts."""

    @staticmethod
    def forward(ctx: Any, words: Tensor, weight: Tensor, num_texts: int) -> Tensor:
        gradients = [torch.zeros(each.shape, dtype=torch.float32) for each in (words, weight)]
        rows = vocabulary.slice_rows(len(weight), words.device)
        logits = words.new_empty(min(rows, max(1, len(words))), len(weight))
        texts = max(1, min(num_texts, rows * num_texts // max(1, len(words))))
        highest = torch.empty(texts, len(weight), dtype=torch.float32)
        places = torch.empty(texts, len(weight), dtype=torch.int64)
        for first in range(0, len(words), len(logits)):
            part = words[first : first + len(logits)]
            torch.mm(part, weight.T, out=logits[: len(part)])
        # ordering the places: 32-bit numbers, those in order, and where they stood
        ordered = torch.empty(highest.numel(), dtype=torch.int32), torch.empty(highest.numel(), dtype=torch.int64)
        del highest, places, ordered
        ctx.save_for_backward(*gradients)
        ctx.dtypes = words.dtype, weight.dtype
        return torch.empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        return *(each.to(dtype) for each, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)), None


def masks_bytes(texts: int, length: int, masks: int, device: str) -> int:
    """Of the decoder's masks while they are drawn: hashes and keys, on a GPU also their sorted copy and its places.

    `data.masking.word_orders`; reckoned by hand, for it goes by what the words are. Texts of L words each, at the most.
    """
    return texts * length * min(masks, length) * (12 if device == "cpu" else 36)


class Counts(NamedTuple):
    """Parameters of a module.

    Attributes:
        trained: of those that have gradients.
        frozen: of the others.
        largest: of the largest one.
    """

    trained: int
    frozen: int
    largest: int


def counts(module: nn.Module) -> Counts:
    """Parameters of a module, shared ones once."""
    sizes = [(each.numel(), each.requires_grad) for each in module.parameters()]
    trained = sum(size for size, wanted in sizes if wanted)
    return Counts(trained, sum(size for size, wanted in sizes if not wanted), max(size for size, _ in sizes))
