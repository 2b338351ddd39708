"""What one step holds at its moments, from the passes of its chunks; bytes are of one rank, the fullest one."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bgetrain.forecast.rehearsal import Pass
from bgetrain.forecast.states import FP32, States

# B queries of this rank, G passages a query, N = B (1 + G) texts, P rows that queries are scored against, D the width

KINDS = ("weights", "gradients", "optimizer", "buckets", "activations", "embeddings", "tiles", "update")
BLOCK = 4096  # texts that are embedded at a time; search/encode.py
TILES = 3  # of scores that live at once; loss/tiles.py

Shape = tuple[int, int]  # texts of a chunk, tokens of each
Moments = Mapping[str, Mapping[str, float]]


class Work(NamedTuple):
    """A rank's texts of a step in chunks.

    Attributes:
        chunks: (texts, tokens of each) -> how many such chunks; shortest texts first.
        tokens: of all texts, padding included.
    """

    chunks: Mapping[Shape, int]
    tokens: int

    @property
    def passes(self) -> int:
        return sum(self.chunks.values())


def work(texts: Mapping[int, int], chunk_tokens: int) -> Work:
    """Cuts texts into chunks of one length each, as `data.tokenize.cut` does but for those that span two lengths.

    Args:
        texts: length -> how many.
        chunk_tokens: the most tokens of a chunk that has several texts.
    """
    chunks: dict[Shape, int] = {}
    for length, count in sorted(texts.items()):
        most = max(1, chunk_tokens // length)
        for size, times in ((most, count // most), (count % most, 1)):
            if size and times:
                chunks[size, length] = times
    return Work(chunks, sum(length * count for length, count in texts.items()))


class Scores(NamedTuple):
    """What the loss over embeddings holds.

    Attributes:
        texts: N.
        queries: B.
        pool: P.
        gathered: whether the pool is of other ranks too.
        width: D.
        tile: rows and columns of a tile.
        widths: numbers of the leading parts that are scored besides, each a copy of the embeddings.
        guide: D' of a guide's embeddings; 0 without one.
    """

    texts: int
    queries: int
    pool: int
    gathered: bool
    width: int
    tile: int
    widths: int
    guide: int

    @property
    def own(self) -> int:
        """Bytes of this rank's embeddings."""
        return FP32 * self.texts * self.width

    @property
    def tiles(self) -> int:
        """Bytes of tiles of scores."""
        return TILES * FP32 * min(self.tile, self.queries) * min(self.tile, self.pool)

    @property
    def loss(self) -> int:
        """Bytes while it is computed and goes back: embeddings as they came, in order, their gradients; the pool likewise."""
        pool = FP32 * self.pool * self.width
        copies = 2 * FP32 * (self.texts + self.pool) * self.widths
        judged = FP32 * self.guide * (self.texts + self.pool)
        return 3 * self.own + (2 if self.gathered else 1) * pool + copies + judged

    @property
    def flops(self) -> int:
        """2 B P D forward, 6 going back."""
        return 8 * self.queries * self.pool * (self.width + self.widths)


def contrastive(states: States, work: Work, pass_of: Callable[[Shape], Pass], scores: Scores, mode: str) -> Moments:
    """Moments of a single or a cached step.

    Args:
        states: of the engine.
        work: this rank's texts.
        pass_of: the pass of one chunk.
        scores: of the loss.
        mode: single | cached.
    """
    passes = [(pass_of(shape), times) for shape, times in work.chunks.items()]
    embedding = {"embeddings": float(scores.loss), "tiles": float(scores.tiles)}
    held = sum(each.kept * times for each, times in passes)
    back = {"embeddings": 2.0 * scores.own}
    if mode == "cached":
        found = backwards(states, [each for each, _ in passes], work.passes > 1)
        loss = {"gradients": float(states.standing), **embedding}
    else:
        found = {"activations": 0.0, "gradients": float(states.standing)}
        before, last = float(held), True
        for each, times in reversed(passes):
            for number in range(min(times, 2)):  # the first of a kind that goes back has the most before it
                before -= each.kept * (1 if number == 0 else times - 1)
                made = 0.0 if last else float(states.made)
                moment = {"activations": before + (each.fresh if last else each.peak), "gradients": states.standing + made}
                found = max(found, moment, key=lambda one: sum(one.values()))
                last = False
        loss = {"activations": float(held), "gradients": float(states.standing), **embedding}
    return moments(states, {"loss": loss, "backward": {**found, **back, "buckets": float(states.buckets)}})


def backwards(states: States, passes: Sequence[Pass], several: bool) -> dict[str, float]:
    """The highest moment of passes that are done one after the other."""
    first = {"activations": float(max(each.fresh for each in passes)), "gradients": float(states.standing)}
    if not several:
        return first
    later = {"activations": float(max(each.peak for each in passes)), "gradients": float(states.gradients)}
    return max(first, later, key=lambda one: sum(one.values()))


def summed(states: States, work: Work, pass_of: Callable[[Shape], Pass], masks: Callable[[Shape], int]) -> Moments:
    """Moments of a step whose loss is a sum over chunks: masked auto-encoding; `masks`: bytes while a chunk's are drawn."""
    passes = [pass_of(shape) for shape in work.chunks]
    found = backwards(states, passes, work.passes > 1)
    drawn = float(max(map(masks, work.chunks)))
    standing = float(states.gradients if work.passes > 1 else states.standing)
    buckets = float(states.buckets)
    masked = {"activations": drawn, "gradients": standing, "buckets": buckets if work.passes > 1 else 0.0}
    return moments(states, {"masks": masked, "chunk": {**found, "buckets": buckets}})


def moments(states: States, steps: Mapping[str, Mapping[str, float]]) -> Moments:
    """Adds what always stands, and the moments after the last pass."""
    base = {"weights": float(states.weights + states.gathered), "optimizer": float(states.optimizer)}
    after = {
        "reduction": {"gradients": float(states.gradients), "buckets": float(states.buckets + states.reduction)},
        "update": {"update": float(states.update)},
    }
    return {name: {**base, **each} for name, each in {**steps, **after}.items()}


def encoding(weights: int, work: Work, pass_of: Callable[[Shape], Pass], width: int) -> Moments:
    """Moments of a model as it is, which embeds a block of texts."""
    forward = float(max(pass_of(shape).forward for shape in work.chunks))
    return {"encode": {"weights": float(weights), "activations": forward, "embeddings": 2.0 * FP32 * BLOCK * width}}


def peak(found: Moments) -> tuple[str, float]:
    """The highest moment and its bytes."""
    name = max(found, key=lambda each: sum(found[each].values()))
    return name, sum(found[name].values())


def flops(work: Work, pass_of: Callable[[Shape], Pass], mode: str) -> int:
    """Operations of all chunks' products; `cached` goes forward twice."""
    passes = ((pass_of(shape), times) for shape, times in work.chunks.items())
    return sum(times * (each.flops + each.forward_flops * (mode == "cached")) for each, times in passes)
