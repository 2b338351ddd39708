"""The order of one source's rows: permutations computed on the fly, one for each epoch, in memory of a batch."""

from collections.abc import Callable

import numpy as np

MASK = np.uint64(0xFFFFFFFFFFFFFFFF)
ROUNDS = 64  # our choice: half of them already leave nothing that the tests of uniformity could tell


def hashed(*keys: int | np.ndarray) -> np.ndarray:
    """Mixes whole numbers into uint64 that look random (SplitMix64, Steele et al. 2014, doi:10.1145/2714064.2660195).

    Args:
        keys: 0 <= key < 2^63, each a number or an array; arrays broadcast.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state + np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) & MASK
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def shuffled(places: np.ndarray, size: int, *keys: int, inverse: bool = False) -> np.ndarray:
    """Where a permutation of `size` items sends `places`: swap-or-not (Hoang, Morris and Rogaway 2012, CRYPTO).

    Each round pairs every place with another and swaps the two or not, as a hash of the pair says; any size will do.

    Args:
        places: int64 [n], 0 <= place < size.
        size: below 2^62.
        keys: choose the permutation.
        inverse: the way back.
    """
    pivots = (hashed(*keys, 0, np.arange(ROUNDS)) % np.uint64(size)).astype(np.int64)
    coins = hashed(*keys, 1, np.arange(ROUNDS)) >> np.uint64(1)
    for number in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
        partners = pivots[number] - places
        partners += size * (partners < 0)
        swap = hashed(coins[number], np.maximum(places, partners)) & np.uint64(1)
        places = np.where(swap.astype(bool), partners, places)
    return places


class Order:
    """All epochs of a source end to end: place -> row; each epoch is a permutation of all rows.

    Where a batch goes over from one epoch to the next, the rows that it has from the first come later in the second: no
    row stands in one batch twice, as a negative of itself. (A batch larger than the source cannot avoid it.)

    Args:
        num_rows: rows of the source, > 0.
        seed: decides the order.
        batch_over: place -> first and last + 1 of the places of the batch that holds it.
    """

    def __init__(self, num_rows: int, seed: int, batch_over: Callable[[int], tuple[int, int]]) -> None:
        self.num_rows, self.seed, self.batch_over = num_rows, seed, batch_over
        self.exchanges: dict[int, np.ndarray] = {}

    def rows(self, places: np.ndarray) -> np.ndarray:
        """int64 [n], the rows at `places`."""
        epochs, offsets = np.divmod(places, self.num_rows)
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            found[chosen] = self.rows_of(epoch, offsets[chosen])
        return found

    def rows_of(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """The rows at `offsets` of one epoch."""
        if offsets.min(initial=self.num_rows) < self.reach(epoch):
            moved, there = self.exchange(epoch)
            if len(moved):
                at = np.minimum(np.searchsorted(moved, offsets), len(moved) - 1)
                offsets = np.where(moved[at] == offsets, there[at], offsets)
        return shuffled(offsets, self.num_rows, self.seed, epoch)

    def exchange(self, epoch: int) -> np.ndarray:
        """int64 [2, n]: offsets of one epoch, rising, and the offsets whose rows stand there instead.

        It depends on the last rows of the epoch before, which an exchange reaches only where a source is smaller than two
        batches: such epochs are gone through one after the other, from the last that stands for itself.
        """
        if epoch in self.exchanges:
            return self.exchanges[epoch]
        first = epoch
        while self.carried(first) and first - 1 not in self.exchanges:
            if self.reach(first - 1) <= self.num_rows - self.carried(first):
                break
            first -= 1
        for each in range(first, epoch + 1):
            self.exchanges[each] = self.exchange_after(each)
        self.exchanges = {old: kept for old, kept in self.exchanges.items() if old >= epoch - 1}
        return self.exchanges[epoch]

    def reach(self, epoch: int) -> int:
        """The offsets of an epoch that its exchange may touch are below this.

        Of the rows carried over, those that stand early are moved, to the first places behind where none of the others is.
        """
        count = self.carried(epoch)
        return self.batch_over(epoch * self.num_rows)[1] - epoch * self.num_rows + count if count else 0

    def carried(self, epoch: int) -> int:
        """Rows of the epoch before in the batch in which `epoch` begins."""
        if epoch <= 0:
            return 0
        begin = epoch * self.num_rows
        first, last = self.batch_over(begin)
        return 0 if last - first > self.num_rows else begin - first

    def exchange_after(self, epoch: int) -> np.ndarray:
        """As `exchange`, given that of the epoch before."""
        count = self.carried(epoch)
        if count == 0:
            return np.zeros((2, 0), np.int64)
        before = self.rows_of(epoch - 1, np.arange(self.num_rows - count, self.num_rows))
        again = shuffled(before, self.num_rows, self.seed, epoch, inverse=True)  # where they stand in this epoch
        head = self.batch_over(epoch * self.num_rows)[1] - epoch * self.num_rows
        early = np.sort(again[again < head])
        free = np.setdiff1d(np.arange(head, min(head + len(again), self.num_rows)), again)[: len(early)]
        return np.stack([np.concatenate([early, free]), np.concatenate([free, early])])  # all early ones are before the free
