"""Memory of a step of masked auto-encoding on paper, and the formula held against what steps take on this CPU.

    python benchmarks/retromae_memory.py                 the table: A100 with 40 GB, bf16, ZeRO-1
    python benchmarks/retromae_memory.py --check         measured / predicted for small models on this CPU; minutes, Linux only

Predictions are those of `bgetrain stage=plan` (bgetrain/forecast): the module's own pass on the meta device, DeepSpeed's states.
Nothing here was measured on a GPU: 10 % of the card are left for its context, NCCL and the allocator's gaps.
"""

import argparse
from functools import cache
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


class Shape(NamedTuple):
    """A step.

    Attributes:
        texts: N.
        length: L, all of them padded to it.
        precision: fp32 | bf16.
        ranks: W.
        checkpointing: of the backbone's layers; the decoder is never recomputed.
        device: cpu | cuda.
        chunks: of a rank's step.
    """

    texts: int
    length: int
    precision: str
    ranks: int
    checkpointing: bool
    device: str
    chunks: int = 1


def built(kind: str, settings: dict[str, Any], device: str) -> Any:
    """The module that is trained; on "meta" it has no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    from bgetrain.model.retromae import RetroMAE

    with torch.device(device):
        lm = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **settings))
        return RetroMAE(lm, query="position", bag_of_words=False)


def predicted(kind: str, settings: dict[str, Any], shape: Shape) -> tuple[dict[str, float], float, str]:
    """Bytes of what stands, by kind; the peak, and the moment it is at."""
    from bgetrain.forecast import passes, states, steps

    size, passed = rehearsed(kind, tuple(settings.items()), shape._replace(ranks=1, chunks=1))
    held = states.states(size, states.Plan(1, shape.precision, shape.ranks, shape.device, 2, states.BUCKET))
    work = steps.Work({(shape.texts, shape.length): shape.chunks}, 0)
    found = steps.summed(held, work, lambda _: passed, lambda each: passes.masks_bytes(*each, MASKS, shape.device))
    at, peak = steps.peak(found)
    return {"weights": held.weights, "gradients": held.gradients, "optimizer": held.optimizer}, peak, at


@cache
def rehearsed(kind: str, settings: tuple[tuple[str, Any], ...], shape: Shape) -> tuple[Any, Any]:
    """Counts of the module's parameters, and the pass of a chunk."""
    import torch
    from transformers import AutoConfig

    from bgetrain.forecast import passes
    from bgetrain.loss.retromae import retromae

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[shape.precision]
    setting = passes.Setting(shape.device, dtype, shape.checkpointing, padded=True)
    objective, config = retromae(query="position"), AutoConfig.for_model(kind, **dict(settings))
    module = passes.auto_encoder(passes.Encoder(config, "cls", None), setting, objective)
    passed = passes.rebuilt(module, setting, objective, shape.texts, shape.length, ratio=RATIO, specials=0)
    return passes.counts(module), passed


def table() -> None:
    print("| model, positions | checkpointing | GPUs | states | one text | texts in 36 GB | tokens | peak at |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (kind, settings) in MODELS.items():
        length = int(name.split(", ", 1)[1].replace(",", ""))
        for checkpointing in (False, True):
            for ranks in (1, 8, 32):
                row(name, kind, settings, Shape(1, length, "bf16", ranks, checkpointing, "cuda", chunks=2))


def row(name: str, kind: str, settings: dict[str, Any], shape: Shape) -> None:
    def fits(texts: int) -> bool:
        return predicted(kind, settings, shape._replace(texts=texts))[1] <= SHARE * CARD

    texts = 0  # the most that fit: doubled, then halved
    step = 1
    while fits(texts + step):
        texts, step = texts + step, 2 * step
    while step > 1:
        step //= 2
        texts += step if fits(texts + step) else 0
    parts, one, _ = predicted(kind, settings, shape)
    at = predicted(kind, settings, shape._replace(texts=max(texts, 1)))[2]
    standing = " + ".join(f"{each / GB:.1f}" for each in parts.values())
    print(
        f"| {name} | {'on' if shape.checkpointing else 'off'} | {shape.ranks} | {standing} | {one / GB:.1f} | "
        f"{texts:,} | {texts * shape.length:,} | {at} |",
        flush=True,
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
