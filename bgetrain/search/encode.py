"""Embeddings of many texts, over all ranks, in order of length, kept on disk."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bgetrain.distributed import barrier, shares
from bgetrain.search import shards
from bgetrain.search.shards import Embeddings, blocks_of, is_whole, mapped, part_of, save
from bgetrain.types import Chunk, Ragged, World

FORMAT = 1  # of the files; a change makes old ones unused


class Encoder(NamedTuple):
    """A model as it is, with how its texts are cut and padded.

    Attributes:
        module: a `BiEncoder` on the rank's device, in evaluation mode.
        tokenizer: its own.
        cut: lengths -> groups of similar length.
        chunk: (token ids, one group) -> padded or packed texts.
        device: where the module is.
    """

    module: nn.Module
    tokenizer: Any
    cut: Callable[[Tensor], list[Tensor]]
    chunk: Callable[[Ragged, Tensor], Chunk | Ragged]
    device: torch.device


def embed(
    encoder: Encoder,
    text: Ragged,
    advance: Callable[[int], None] = lambda _: None,
    shrink: Callable[[Tensor, Exception], None] | None = None,
) -> Tensor:
    """Embeds texts on this rank, without gradients.

    Args:
        encoder: the model.
        text: N texts as its tokenizer has them.
        advance: told how many texts each forward pass has embedded.
        shrink: told the lengths of a group that the memory was too small for, and the error: lets `cut` make smaller groups
            from then on, or raises; None: the error is raised.

    Returns:
        fp32 [N, D] on the device, unit rows.
    """
    rows: list[Tensor] = []
    done: list[Tensor] = []
    groups = encoder.cut(text.lengths)
    while groups:
        lack = None
        try:
            rows.append(forward(encoder, text, groups[0]))
        except RuntimeError as error:
            if shrink is None or not is_out_of_memory(error):
                raise
            lack = error.with_traceback(None)  # whose frames hold what the pass had taken
        if lack is not None and shrink is not None:
            shrink(text.lengths[groups[0]], lack)
            rest = torch.cat(groups)
            groups = [rest[group] for group in encoder.cut(text.lengths[rest])]
            continue
        done.append(groups.pop(0))
        advance(len(done[-1]))
    embeddings = torch.cat(rows)
    found = torch.empty_like(embeddings)
    found[torch.cat(done).to(encoder.device)] = embeddings
    return found


def forward(encoder: Encoder, text: Ragged, group: Tensor) -> Tensor:
    """One pass over the texts of a group: fp32 [n, D]."""
    tensors = (None if each is None else each.to(encoder.device, non_blocking=True) for each in encoder.chunk(text, group))
    with torch.no_grad():
        embeddings: Tensor = encoder.module(None, *tensors)[0]
    return embeddings


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had too little memory; only CUDA's allocator has a type for it."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in said or "out of memory" in said


def encode(
    encoder: Encoder,
    take: Callable[[range], Sequence[str]],
    total: int,
    *,
    tokenize: Callable[[Sequence[str]], Ragged],
    folder: Path,
    world: World,
    advance: Callable[[int], None],
    met: Callable[["Read"], None] = lambda _: None,
) -> Embeddings:
    """Embeds texts block by block, each rank its own, and keeps each block in a file that the next run finds.

    A block is found by its texts, wherever in a corpus they stand and however many ranks there are. It is cut into chunks by
    itself, so that its embeddings do not depend on other blocks.

    Args:
        encoder: the model.
        take: a range of texts -> the texts.
        total: texts in all, the same on every rank.
        tokenize: texts -> token ids.
        folder: for the files, of this model and these settings alone; need not be the same place on every machine.
        world: all ranks.
        advance: told how many texts have been embedded or found since it was last told, over all ranks approximately.
        met: told of each block of this rank when its file is whole.

    Returns:
        fp32 [total, D], unit rows, each rank with its part.

    Raises:
        ValueError: an embedding is not finite; says of which text.
    """
    part, columns = part_of(total, world), width(encoder.module)
    paths: dict[int, Path] = {}

    def read(number: int) -> Read:
        texts = take(range(number * shards.BLOCK, min((number + 1) * shards.BLOCK, total)))
        path = folder / f"{fingerprint_of(texts)}.npy"
        return Read(number, texts, path, None if is_whole(path, (len(texts), columns)) else tokenize(texts))

    coming = ahead(read, blocks_of(part))
    for _ in range(max(shares(-(-total // shards.BLOCK), world))):
        done = next(coming, None)
        if done is not None:
            block_of(encoder, done, lambda count: advance(count * world.size))
            paths[done.number] = done.path
            met(done)
        # a rank that finds what another must do would else wait for it beyond the timeout
        barrier(world)
    return Embeddings(total, columns, part, lambda number: mapped(paths[number]))


class Read(NamedTuple):
    """A block of texts; token ids None where its file is whole."""

    number: int
    texts: Sequence[str]
    path: Path
    text: Ragged | None


def block_of(encoder: Encoder, read: Read, advance: Callable[[int], None]) -> None:
    """Embeds a block and writes its file, unless that is whole.

    Raises:
        ValueError: an embedding is not finite.
    """
    if read.text is None:
        advance(len(read.texts))
        return
    rows = embed(encoder, read.text, advance).float().cpu().numpy()  # [N, D]
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(rows)} embeddings are not finite, the first that of {read.texts[bad[0]][:60]!r}")
    save(read.path, rows)


def ahead(read: Callable[[Any], Any], numbers: Iterable[Any]) -> Iterator[Any]:
    """`read` of each number in turn, one of them ahead of its use in a thread: the device does not wait for texts."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for number in numbers:
            come, coming = coming, pool.submit(read, number)
            if come is not None:
                yield come.result()
        if coming is not None:
            yield coming.result()


def width(module: nn.Module) -> int:
    """D of a `BiEncoder`."""
    backbone: Any = module.backbone
    return int(backbone.config.hidden_size)


def fingerprint_of(texts: Sequence[str]) -> str:
    """Of texts and where one ends and the next begins."""
    digest = blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def fingerprint_of_model(module: nn.Module, facts: Mapping[str, Any]) -> str:
    """Of a model's weights and of what else its embeddings depend on.

    Args:
        module: the encoder, in the precision that it computes in.
        facts: by name, what JSON can write.
    """
    digest = blake2b(json.dumps([FORMAT, facts], sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
