"""Which rows at which step: pure functions of (seed, step), the same on every rank and for every world size."""

import bisect
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from bgetrain.data.order import Order, hashed, shuffled

CYCLE = 64  # steps whose sources are dealt together, at the least
ARRANGEMENT, JITTER, START, SOURCE = 1, 2, 3, 4  # keep the draws of one seed apart


class Draw(NamedTuple):
    """A stretch of one step's global batch.

    Attributes:
        sources: int64 [n], the source of each row.
        rows: int64 [n], rows of these sources.
        epochs: int64 [n], the pass over its source that each row belongs to.
    """

    sources: np.ndarray
    rows: np.ndarray
    epochs: np.ndarray


class Stream(NamedTuple):
    """One source of a mixture, as the plan sees it.

    Attributes:
        rows: of the source, > 0.
        batch: rows of a global batch that is drawn from it alone, > 0.
        share: of all rows drawn; the shares of a mixture add up to 1.
    """

    rows: int
    batch: int
    share: float


class Plan:
    """The order of the data: which source each step takes, and which rows of it.

    Every source goes through its own epochs, each a permutation of its rows, and begins the next when one is used up.

    Args:
        streams: the sources.
        seed: decides the order.
        mixed: rows of a step come from all sources, instead of from one; their `batch` must then be the same.
        epoch_rows: rows drawn from all sources together that count as one epoch; None: as many as they have.

    Raises:
        ValueError: a mixed batch is too small for so many sources.
    """

    def __init__(self, streams: Sequence[Stream], seed: int, *, mixed: bool = False, epoch_rows: float | None = None) -> None:
        self.streams, self.seed, self.mixed = list(streams), seed, mixed
        self.epoch_rows = epoch_rows or float(sum(stream.rows for stream in streams))
        self.batches = np.array([stream.batch for stream in streams])
        shares = np.array([stream.share for stream in streams], float)
        visits = shares if mixed else shares / self.batches  # rows of a mixed batch, or else steps, are dealt
        self.portions = visits / visits.sum()
        self.largest = int(np.argmax(self.portions))
        count = len(streams)
        self.cycle = int(self.batches[0]) if mixed else max(CYCLE, count * count)
        self.starts = hashed(seed, START, np.arange(count)) / 2.0**64
        if self.cycle * self.portions[self.largest] < count - 1:
            raise ValueError(
                f"global_batch={self.cycle} is too small to mix {count} sources in it: use {count * count} or more, "
                f"or batches from one source each"
            )
        self.seeds = [seed if count == 1 else int(hashed(seed, SOURCE, number) >> np.uint64(1)) for number in range(count)]
        self.orders = [
            Order(stream.rows, self.seeds[number], partial(self.batch_over, number)) for number, stream in enumerate(streams)
        ]
        self.deals: dict[int, np.ndarray] = {}

    def draw(self, step: int, part: range | None = None) -> Draw:
        """Rows of the global batch of `step`, in O(batch).

        Args:
            step: counted from 1.
            part: positions in the global batch, e.g. this rank's share; None: all.
        """
        part = range(self.size(step)) if part is None else part
        if not self.mixed:
            source, visit = self.visit(step)
            sources = np.full(len(part), source)
            places = visit * self.batches[source] + np.arange(part.start, part.stop, dtype=np.int64)
        else:
            before, counts = self.dealt(step - 1), self.dealt(step) - self.dealt(step - 1)
            ends = counts.cumsum()
            items = shuffled(np.arange(part.start, part.stop), self.cycle, self.seed, ARRANGEMENT, step)
            sources = np.searchsorted(ends, items, side="right")
            places = items - (ends - counts)[sources] + before[sources]
        rows, epochs = np.empty_like(places), np.empty_like(places)
        for source in np.unique(sources).tolist():
            chosen = sources == source
            rows[chosen] = self.orders[source].rows(places[chosen])
            epochs[chosen] = places[chosen] // self.streams[source].rows
        return Draw(sources, rows, epochs)

    def size(self, step: int) -> int:
        """Rows of the global batch of `step`."""
        return self.cycle if self.mixed else int(self.batches[self.visit(step)[0]])

    def most(self, source: int) -> int:
        """Rows of one step from a source, at the most."""
        if not self.mixed:
            return int(self.batches[source])
        return int(np.ceil(self.cycle * self.portions[source])) + (len(self.streams) - 1 if source == self.largest else 0)

    def source(self, step: int) -> int | None:
        """The source that all rows of `step` come from; None where they are mixed."""
        return None if self.mixed else self.visit(step)[0]

    def visit(self, step: int) -> tuple[int, int]:
        """The source of `step`, and how many steps before took it; where batches are of one source."""
        cycle, place = divmod(step - 1, self.cycle)
        deal = self.deal(cycle)
        source = int(deal[place])
        return source, int(self.dealt(cycle)[source] + np.count_nonzero(deal[:place] == source))

    def dealt(self, cycles: int) -> np.ndarray:
        """int64 [sources], how many of the first `cycles` times `self.cycle` steps (or rows) each source has.

        All but the largest share have theirs to within one; the largest has what is left.
        """
        if cycles == 0:
            return np.zeros(len(self.streams), np.int64)
        found = np.floor(cycles * self.cycle * self.portions + self.starts).astype(np.int64)
        found[self.largest] += cycles * self.cycle - found.sum()
        return found

    def deal(self, cycle: int) -> np.ndarray:
        """int64 [self.cycle], the source of each step of a cycle: each source spread evenly, with jitter."""
        if cycle not in self.deals:
            counts = self.dealt(cycle + 1) - self.dealt(cycle)
            sources = np.repeat(np.arange(len(counts)), counts)
            nth = np.arange(self.cycle) - np.repeat(counts.cumsum() - counts, counts)
            jitter = hashed(self.seed, JITTER, cycle, np.arange(self.cycle)) / 2.0**64
            self.deals = {old: kept for old, kept in self.deals.items() if old == cycle - 1}
            self.deals[cycle] = sources[np.argsort((nth + jitter) / counts[sources], kind="stable")]
        return self.deals[cycle]

    def batch_over(self, source: int, place: int) -> tuple[int, int]:
        """First and last + 1 of the places of a source that stand in one batch with `place`."""
        if not self.mixed:
            size = int(self.batches[source])
            return place // size * size, (place // size + 1) * size
        reach = int(place / self.cycle / self.portions[source]) + len(self.streams) + 2
        step = bisect.bisect_right(range(reach), place, key=lambda steps: int(self.dealt(steps)[source]))
        return int(self.dealt(step - 1)[source]), int(self.dealt(step)[source])

    def epoch(self, step: int) -> float:
        """Passes over the data completed before `step`."""
        if self.mixed:
            return (step - 1) * self.cycle / self.epoch_rows
        cycle, place = divmod(step - 1, self.cycle)
        taken = self.dealt(cycle) + np.bincount(self.deal(cycle)[:place], minlength=len(self.streams))
        return float(taken @ self.batches) / self.epoch_rows

    def steps(self, epochs: float) -> int:
        """Steps that make `epochs` passes, at least one."""
        rows_of_a_step = self.cycle if self.mixed else float(self.portions @ self.batches)
        return max(1, round(epochs * self.epoch_rows / rows_of_a_step))
