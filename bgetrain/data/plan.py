"""Which rows at which step: pure functions of (seed, step), the same on every rank and for every world size."""

from typing import NamedTuple

import numpy as np

MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


class Draw(NamedTuple):
    """A stretch of one step's global batch.

    Attributes:
        rows: int64 [n], rows of the data set.
        epochs: int64 [n], the pass over the data that each row belongs to.
    """

    rows: np.ndarray
    epochs: np.ndarray


def hashed(*keys: int | np.ndarray) -> np.ndarray:
    """Mixes whole numbers into uint64 that look random (SplitMix64, Steele et al. 2014, doi:10.1145/2714064.2660195).

    Args:
        keys: 0 <= key < 2^63, each a number or an array; arrays broadcast.
    """
    state = np.zeros(np.broadcast_shapes(*(np.shape(key) for key in keys)), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state + np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) & MASK
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


class Plan:
    """The order of the data: each epoch is a permutation of all rows, and the steps cut the epochs' row in pieces.

    Args:
        num_rows: rows of the data set, > 0.
        global_batch: rows per step over all ranks, > 0.
        seed: decides the order.
    """

    def __init__(self, num_rows: int, global_batch: int, seed: int) -> None:
        self.num_rows, self.global_batch, self.seed = num_rows, global_batch, seed
        self.orders: dict[int, np.ndarray] = {}

    def draw(self, step: int, part: range) -> Draw:
        """Rows `part` of the global batch of `step`.

        Args:
            step: counted from 1.
            part: positions in the global batch, e.g. this rank's share.
        """
        places = (step - 1) * self.global_batch + np.arange(part.start, part.stop, dtype=np.int64)
        epochs, offsets = np.divmod(places, self.num_rows)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self.order(int(epoch))[offsets[chosen]]
        return Draw(rows, epochs)

    def order(self, epoch: int) -> np.ndarray:
        """int64 [num_rows], the permutation of one epoch; the last two are kept.

        Where a step goes over from one epoch to the next, the rows that it has from the first come later in the second:
        no row stands in one batch twice, as a negative of itself. (A batch larger than the data cannot avoid it.)
        """
        if epoch in self.orders:
            return self.orders[epoch]
        # far from the seam both orders are the plain ones, so that a single epoch can be asked for directly
        first = epoch if epoch == 0 or self.num_rows >= 3 * self.global_batch else 0
        order = self.plain_order(first - 1) if first else None
        for each in range(first, epoch + 1):
            order = self.after(order, each)
        self.orders = {old: kept for old, kept in self.orders.items() if old >= epoch - 1}
        assert order is not None
        self.orders[epoch] = order
        return order

    def plain_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)

    def after(self, before: np.ndarray | None, epoch: int) -> np.ndarray:
        """The order of an epoch given that of the one before."""
        order = self.plain_order(epoch)
        shared = epoch * self.num_rows % self.global_batch  # rows of the step at the seam that the epoch before has
        if before is None or shared == 0 or self.global_batch > self.num_rows:
            return order
        taken = np.isin(order, before[-shared:])
        begin = np.flatnonzero(~taken)[: self.global_batch - shared]
        return np.concatenate([order[begin], np.delete(order, begin)])

    def epoch(self, step: int) -> float:
        """Passes over the data completed before `step`."""
        return (step - 1) * self.global_batch / self.num_rows

    def steps(self, epochs: float) -> int:
        """Steps that make `epochs` passes, at least one."""
        return max(1, round(epochs * self.num_rows / self.global_batch))
