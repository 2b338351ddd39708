"""What a worker counts of its rows, in memory that does not grow with their number, and how counts are joined."""

import heapq
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bgetrain.data.check_near import Signed
from bgetrain.data.check_places import Detail, First, Places

LONGEST = 1 << 15  # tokens; longer texts count as this long in the histogram, with all their tokens in the sums


class Lengths:
    """Lengths of texts held against a limit.

    Args:
        limit: tokens, beyond which a text is cut.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.counts = limit, np.zeros(LONGEST + 1, np.int64)
        self.tokens, self.lost, self.cut, self.longest = 0, 0, 0, 0

    def add(self, lengths: np.ndarray) -> None:
        """Counts int64 [N] lengths."""
        if len(lengths):
            self.counts += np.bincount(np.minimum(lengths, LONGEST), minlength=LONGEST + 1)
            self.tokens += int(lengths.sum())
            self.lost += int(np.maximum(lengths - self.limit, 0).sum())
            self.cut += int((lengths > self.limit).sum())
            self.longest = max(self.longest, int(lengths.max()))

    def join(self, other: "Lengths") -> None:
        self.counts += other.counts
        self.tokens, self.lost, self.cut = self.tokens + other.tokens, self.lost + other.lost, self.cut + other.cut
        self.longest = max(self.longest, other.longest)

    def quantile(self, share: float) -> int:
        """The length that this share of the texts does not exceed."""
        return int(np.searchsorted(self.counts.cumsum(), share * self.counts.sum()))


class Least:
    """The `most` items of the least keys: a sample that no division of the rows changes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.heap: list[tuple[int, int, tuple[str, ...]]] = []  # (-key, -place, texts)

    def add(self, key: int, place: int, texts: tuple[str, ...]) -> None:
        if len(self.heap) < self.most:
            heapq.heappush(self.heap, (-key, -place, texts))
        elif self.most and (-key, -place) > self.heap[0][:2]:
            heapq.heapreplace(self.heap, (-key, -place, texts))

    def join(self, other: "Least") -> None:
        for key, place, texts in other.heap:
            self.add(-key, -place, texts)

    def texts(self) -> list[tuple[str, ...]]:
        return [texts for _, _, texts in sorted(self.heap, reverse=True)]


class Tally:
    """What is known of some of the rows.

    Args:
        places: of the source's files.
        limits: what is measured -> its limit in tokens.
        most: places kept of each kind.
        samples: rows whose language is guessed.
    """

    def __init__(self, places: Places, limits: dict[str, int], most: int, samples: int) -> None:
        self.places, self.most = places, most
        self.rows: Counter[int] = Counter()  # file -> rows
        self.usable = 0
        self.kinds: dict[str, First] = {}
        self.lengths = {name: Lengths(limit) for name, limit in limits.items()}
        self.positives: Counter[int] = Counter()  # listed in a row -> rows
        self.negatives: Counter[int] = Counter()
        self.prompted = self.scored = 0
        self.sample = Least(samples)
        self.near: dict[str, dict[int, Signed]] = {}
        self.near_full: set[str] = set()  # of which texts were left out

    def add(self, kind: str, place: int, detail: Detail) -> None:
        self.kinds.setdefault(kind, First(self.most)).add(place, detail)

    def found(self, kind: str, count: int, first: Sequence[tuple[int, Detail]]) -> None:
        """Adds findings of which the first alone are told."""
        kept = self.kinds.setdefault(kind, First(self.most))
        kept.count += count
        for place, detail in first:
            kept.keep(place, detail)

    def join(self, other: "Tally") -> None:
        """Takes over all but the near texts, which are joined at once."""
        self.places.join(other.places.heads)
        self.rows += other.rows
        self.positives += other.positives
        self.negatives += other.negatives
        self.usable += other.usable
        self.prompted += other.prompted
        self.scored += other.scored
        self.sample.join(other.sample)
        self.near_full |= other.near_full
        for kind, found in other.kinds.items():
            self.kinds.setdefault(kind, First(self.most)).join(found)
        for name, lengths in other.lengths.items():
            self.lengths[name].join(lengths)
