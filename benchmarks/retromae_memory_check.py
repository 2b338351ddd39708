"""What a step of masked auto-encoding takes on this CPU beside what is foreseen; called by retromae_memory.py --check."""

import multiprocessing
import os
from itertools import product
from pathlib import Path
from typing import Any

from retromae_memory import MASKS, RATIO, Shape, built, predicted

SMALL: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 4000}


def small(kind: str, width: int) -> dict[str, Any]:
    """Settings of a model of the check."""
    special = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    if kind == "modernbert":
        own = {"intermediate_size": width * 3 // 2, "global_attn_every_n_layers": 2}
    else:  # where attention is dropped out, a CPU keeps all of it, which a GPU does not
        own = {"intermediate_size": 4 * width, "attention_probs_dropout_prob": 0.0}
    return {**SMALL, "hidden_size": width, "max_position_embeddings": 4096, **own, **special}


def check(tokens: int) -> None:
    """Prints measured / predicted, each cell in a process of its own."""
    # freed blocks go back to the system at once, or the peak would be the allocator's
    os.environ |= {f"MALLOC_{name}_THRESHOLD_": "65536" for name in ("MMAP", "TRIM")}
    os.environ |= {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}  # deepspeed insists on the last
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "bgetrain.stage.retromae"])
    print(
        "| model | width | texts x tokens | precision | checkpointing | states MB | to predicted | peak MB | to predicted | at |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    precisions = {("bert", "fp32"): (256, 2048), ("modernbert", "fp32"): (256, 2048), ("bert", "bf16"): (256,)}
    cells = [(kind, precision, length) for (kind, precision), lengths in precisions.items() for length in lengths]
    for (kind, precision, length), width, checkpointing in product(cells, (128, 256), (False, True)):
        shape = Shape(tokens // length, length, precision, 1, checkpointing, "cpu", chunks=2)
        settings = small(kind, width)
        end, other = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(kind, settings, shape, other))
        process.start()
        other.close()
        held, peak = end.recv()
        process.join()
        parts, expected, at = predicted(kind, settings, shape)
        kept = parts["weights"] + parts["optimizer"]
        if precision == "bf16":  # fp32 sums of gradients stand between steps
            kept += parts["gradients"] * 4 / 6
        print(
            f"| {kind} | {width} | {shape.texts} x {length:,} | {precision} | {'on' if checkpointing else 'off'} | "
            f"{held / 1e6:.0f} | {held / kept:.2f} | {peak / 1e6:.0f} | {peak / expected:.2f} | {at} |",
            flush=True,
        )


def measure(kind: str, settings: dict[str, Any], shape: Shape, end: Any) -> None:
    """Sends bytes resident after two steps, and at the peak of the third; both less what a tiny model leaves behind."""
    import gc

    import torch

    from bgetrain import distributed

    torch.set_num_threads(1)
    world = distributed.start(0, 1, 0, 1, 5.0)
    step = stepper(kind, small(kind, 64), shape._replace(texts=2, length=64), world)
    step(1)
    del step
    gc.collect()
    before = resident("VmRSS")
    step = stepper(kind, settings, shape, world)
    step(1)
    step(2)
    gc.collect()
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step(3)
    end.send((held - before, resident("VmHWM") - before))
    os._exit(0)


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text("utf8").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def stepper(kind: str, settings: dict[str, Any], shape: Shape, world: Any) -> Any:
    """The stage's own step on two equal chunks, with its engine and optimizer."""
    import torch

    from bgetrain.data.masking import Masking
    from bgetrain.engine.deepspeed import start
    from bgetrain.loss.retromae import retromae
    from bgetrain.model.body import checkpoint_activations
    from bgetrain.model.dropout import replace_dropout
    from bgetrain.optim.adamw import adamw
    from bgetrain.stage import masked
    from bgetrain.types import WordChunk

    module = built(kind, settings, "cpu").train()
    replace_dropout(module)
    if shape.checkpointing:
        checkpoint_activations(module.lm)
    optimizer, _ = adamw(module.named_parameters(), lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8, warmup_ratio=0.0)
    engine = start(
        module, optimizer, precision=shape.precision, world=world, gradient_clipping=1.0, zero_optimization={"stage": 1}
    )
    trained = masked.Trained(engine, retromae(query="position"), Masking(RATIO, 0.5, MASKS, 5, 4000, 0), world)
    ids = torch.randint(6, 4000, (shape.texts, shape.length))
    words = torch.arange(-1, shape.length - 1).expand(shape.texts, -1).contiguous()
    words[:, -1] = -1
    mask = None
    if shape.texts > 1:
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[1, -1] = False
    chunk = WordChunk(ids, mask, words, torch.arange(shape.texts))
    batch = masked.WordBatch([chunk, chunk], torch.full((2 * shape.texts,), shape.length), 0.0)

    def step(number: int) -> None:
        masked.update_once(trained, number, batch)
        engine.step()

    return step
