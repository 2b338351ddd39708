"""Memory of a step of masked auto-encoding on paper, and the formula held against what steps take on this CPU.

    python benchmarks/retromae_memory.py                 the table: A100 with 40 GB, bf16, ZeRO-1
    python benchmarks/retromae_memory.py --check         measured / predicted for small models on this CPU; minutes, Linux only

A prediction is the states of the engine plus the largest of what the step holds at six moments (`moments`); each term names the
line that makes it. Nothing here was measured on a GPU: 10 % of the card are left for its context, NCCL and the allocator's gaps.
"""

import argparse
from typing import Any, NamedTuple

GB = 10**9
CARD, SHARE = 40 * GB, 0.9  # of an A100-40G; the share is our choice
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # Devlin et al. 2019 (arXiv:1810.04805), section 3; config.json of google-bert/bert-base-uncased: transformers' defaults
    "BERT-base, 512": ("bert", {"vocab_size": 30522}),
    # Warner et al. 2024 (arXiv:2412.13663), table 3; config.json of answerdotai/ModernBERT-base: transformers' defaults
    "ModernBERT-base, 8,192": ("modernbert", {}),
    # Conneau et al. 2020 (arXiv:1911.02116), appendix; positions as of BGE-M3 (arXiv:2402.03216), which stretched them to 8,194
    "XLM-R-large, 8,192": ("xlm-roberta", {
        "vocab_size": 250002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "max_position_embeddings": 8194, "type_vocab_size": 1, "pad_token_id": 1,
    }),
}  # fmt: skip
RATIO, MASKS = 0.3, 256  # conf/stage/retromae.yaml: encoder_ratio, decoder_masks
SLICES = {"cpu": 2**24, "cuda": 2**27}  # loss/vocabulary.py: ELEMENTS, ELEMENTS_ELSEWHERE
BUCKET = 5e8  # elements; deepspeed's reduce_bucket_size


class Shape(NamedTuple):
    """A step of one chunk.

    Attributes:
        texts: N.
        length: L, all of them padded to it.
        precision: fp32 | bf16.
        ranks: W.
        checkpointing: of the backbone's layers; the decoder is never recomputed.
        device: cpu | cuda.
    """

    texts: int
    length: int
    precision: str
    ranks: int
    checkpointing: bool
    device: str


class Sizes(NamedTuple):
    """What of a backbone decides on memory.

    Attributes:
        parameters: P, the decoder's included.
        width: D.
        inner: I, of the feed-forward layers.
        heads: of attention.
        full, local: layers that attend to all tokens, and to a window.
        vocabulary: V.
        gated: ModernBERT's layers: LayerNorm first, gated feed-forward, rotary positions.
        dropped: whether hidden states are dropped.
    """

    parameters: int
    width: int
    inner: int
    heads: int
    full: int
    local: int
    vocabulary: int
    gated: bool
    dropped: bool


def built(kind: str, settings: dict[str, Any], device: str) -> Any:
    """The module that is trained; on "meta" it has no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    from bgetrain.model.retromae import RetroMAE

    with torch.device(device):
        lm = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **settings))
        return RetroMAE(lm, query="position", bag_of_words=False)


def sizes_of(kind: str, settings: dict[str, Any]) -> Sizes:
    module = built(kind, settings, "meta")
    config = module.lm.config
    local = sum(each == "sliding_attention" for each in getattr(config, "layer_types", None) or [])
    return Sizes(
        parameters=sum(each.numel() for each in module.parameters()),
        width=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        full=config.num_hidden_layers - local,
        local=local,
        vocabulary=config.vocab_size,
        gated=kind == "modernbert",
        dropped=getattr(config, "hidden_dropout_prob", 0.0) > 0,
    )


def states(model: Sizes, shape: Shape) -> dict[str, float]:
    """Bytes held in every chunk of a step but the first."""
    size, ranks = model.parameters, shape.ranks
    if shape.precision == "fp32":  # deepspeed/runtime/zero/stage_1_and_2.py
        return {"weights": 4 * size, "gradients": 4 * size, "optimizer": 12 * size / ranks}
    # engine/deepspeed.py asks for grad_accum_dtype=fp32: at ZeRO-1 deepspeed/runtime/bf16_optimizer.py then keeps every gradient
    # whole on each rank, in fp32, beside the one of the last backward pass, in bf16
    return {"weights": 2 * size, "gradients": (4 + 2) * size, "optimizer": 12 * size / ranks}


def layer_bytes(model: Sizes, shape: Shape, *, masked: bool) -> float:
    """What autograd keeps of one layer of the backbone."""
    element = 2 if shape.precision == "bf16" else 4
    tokens, width, inner = shape.texts * shape.length, model.width, model.inner
    # BERT: input; q, k, v; attended; LayerNorm's input and output; 2 I around the activation; LayerNorm's input.
    # ModernBERT: input and its norm; q and k turned, and v as a view of all three; attended; input and its norm; 4 I
    elements = 10 * width + 4 * inner if model.gated else 8 * width + 2 * inner
    kept = tokens * (elements * element + 4 * model.heads + 16)  # logsumexp; two LayerNorms' mean and deviation
    if model.dropped:
        kept += 2 * tokens * width  # one byte an element: model/dropout.py, and torch's own on a GPU
    if masked:  # scaled_dot_product_attention makes a boolean mask one of numbers, and keeps it
        kept += shape.texts * shape.length**2 * element
    return kept


def moments(model: Sizes, shape: Shape) -> dict[str, float]:
    """Bytes of a chunk at the moments that may be the highest."""
    element = 2 if shape.precision == "bf16" else 4
    texts, length, width, inner = shape.texts, shape.length, model.width, model.inner
    tokens, square, table = texts * length, texts * length**2, model.vocabulary * width
    padded = texts > 1
    full, local = (layer_bytes(model, shape, masked=masked) for masked in (padded, True))
    # boolean masks of the backbone, kept for its layers as long as some are to be recomputed
    shared = square * (padded + (model.local > 0))
    layers = model.full * full + model.local * local
    if shape.checkpointing:
        layers = (model.full + model.local) * tokens * width * element + shared
    embedding = tokens * (width * element + (width if model.dropped else 0))  # LayerNorm's input

    # model/retromae.py. LayerNorm's input of the embedding; context; query; q, k, v; attended; LayerNorm's input and output; 2 I;
    # LayerNorm's input
    elements = (10 if model.gated else 11) * width + 2 * inner
    decoder = tokens * (elements * element + 4 * model.heads + 16 + (3 * width if model.dropped else 0))
    visible = square  # data/masking.py: bool [N, L, L], held by the step
    decoder += square * element  # as numbers
    labels = tokens * (1 + RATIO)
    head = 3 * labels * width * element  # before_vocabulary: states of the labels, around the activation
    kept = embedding + layers + visible + decoder + head

    # loss/vocabulary.py: hidden states of both, LayerNorm's output and both in one, their gradients in fp32; that of the
    # vocabulary layer, fp32, and an addend of it where the product is bf16; one slice of logits
    loss = 2 * tokens * width * element + 2 * labels * width * element + 4 * labels * width
    logits = min(SLICES[shape.device], labels * model.vocabulary)
    loss += 4 * table + 4 * logits + ((table + logits) * element if element == 2 else 0)
    if shape.device == "cpu" and element == 2:
        loss += 4 * logits  # torch.addmm to bf16 makes its result in fp32 first on a CPU (measured alone)

    # gradients inside one layer while it is gone through
    working = tokens * element * ((4 if model.gated else 2) * inner + 2 * width)
    back = embedding + layers + table * element  # and the vocabulary layer's gradient, as long as the embeddings' is to come
    layer = max(full if model.full else 0, local if model.local else 0)
    again = back + working + (layer if shape.checkpointing else 0)
    # data/masking.py word_orders: pairs of hashes, keys, and on a GPU their sorted copy and its places
    orders = tokens * min(MASKS, length) * (12 if shape.device == "cpu" else 36)
    # transformers/masking_utils.py: distances of all tokens from all, int64, and without their sign
    distances = square + shared + 16 * length**2 * (model.local > 0)
    step = 4 * model.parameters / shape.ranks  # AdamW's root of the second moment
    if shape.precision == "fp32":
        step += 8 * model.parameters  # stage_1_and_2.py: gradients in a bucket, and this rank's part
    elif model.parameters < BUCKET:
        step = max(step, 4 * model.parameters)  # engine.py allreduce_bucket: a copy of the gradients to be summed
    return {
        "loss": kept + loss,
        "backward of the decoder": back + visible + decoder + working,
        "backward of a layer": again,
        "backward of the embeddings": 3 * table * element + 4 * table * (element == 2),
        "masks of the decoder": orders,
        "masks of the backbone": distances,
        "update": step,
    }


def predicted(model: Sizes, shape: Shape) -> tuple[float, str]:
    """Peak in bytes, and the moment it is at."""
    at = moments(model, shape)
    highest = max(at, key=lambda name: at[name])
    return sum(states(model, shape).values()) + at[highest], highest


def table() -> None:
    print("| model, positions | checkpointing | GPUs | states | one text | texts in 36 GB | tokens | peak at |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (kind, settings) in MODELS.items():
        model, length = sizes_of(kind, settings), int(name.split(", ", 1)[1].replace(",", ""))
        for checkpointing in (False, True):
            for ranks in (1, 8, 32):
                row(name, model, Shape(1, length, "bf16", ranks, checkpointing, "cuda"))


def row(name: str, model: Sizes, shape: Shape) -> None:
    texts = 0
    while predicted(model, shape._replace(texts=texts + 1))[0] <= SHARE * CARD:
        texts += 1
    parts = " + ".join(f"{each / GB:.1f}" for each in states(model, shape).values())
    at = predicted(model, shape._replace(texts=max(texts, 1)))[1]
    print(
        f"| {name} | {'on' if shape.checkpointing else 'off'} | {shape.ranks} | {parts} | "
        f"{predicted(model, shape)[0] / GB:.1f} | {texts:,} | {texts * shape.length:,} | {at} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tokens", type=int, default=4096, help="of a chunk of the check")
    asked = parser.parse_args()
    if not asked.check:
        return table()
    from retromae_memory_check import check

    return check(asked.tokens)


if __name__ == "__main__":
    main()
