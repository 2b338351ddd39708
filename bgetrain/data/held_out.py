"""Texts or rows that are kept back from training, to be scored while it runs."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np

from bgetrain.data.order import shuffled
from bgetrain.data.plan import Draw
from bgetrain.sources import Rows, Texts

T = TypeVar("T", Texts, Rows)


def held_out(items: T, count: int, *, what: str) -> tuple[T, T]:
    """Parts the items of a source in those to train on and `count` others, spread evenly over it.

    The held items are the middle ones of `count` equal parts; both views keep the order of the source, and neither has a
    list of what is in it.

    Args:
        items: whole documents, so that no part of one is in both, or labelled rows.
        count: items to hold out, >= 0, below half of all.
        what: they are, for messages: texts, rows.

    Raises:
        ValueError: `count` is half of the items or more.
    """
    if 2 * count >= len(items):
        raise ValueError(
            f"{count:,} {what} cannot be held out of {len(items):,}: it must be below half of them, "
            f"{max(len(items) - 1, 0) // 2:,} at most"
        )
    return cast(T, View(items, count, held=False)), cast(T, View(items, count, held=True))


class View:
    """The items that are held out, or the others.

    Attributes:
        notes: those of the items, if they have any.
    """

    def __init__(self, items: Any, count: int, *, held: bool) -> None:
        self.items, self.count, self.held = items, count, held
        self.notes: Sequence[str] = getattr(items, "notes", [])

    def __len__(self) -> int:
        return self.count if self.held else len(self.items) - self.count

    def take(self, indices: Sequence[int]) -> list[Any]:
        return list(self.items.take([self.place(int(index)) for index in indices]))

    def where(self, index: int) -> str:
        return str(self.items.where(self.place(index)))

    def place(self, index: int) -> int:
        """Where an item of this view stands in the source."""
        total, size = len(self.items), len(self)
        if not 0 <= index < size:
            raise IndexError(f"item {index} of {size}")
        if self.held:
            return place_of(index, total, self.count)
        # held item k stands at (2 k + 1) total // (2 count): before it are that many less k of this view. Those k for which
        # this is no more than `index` stand before the item: 2 k (total - count) < 2 count (index + 1) - total
        before = -(-(2 * self.count * (index + 1) - total) // (2 * (total - self.count)))
        return index + min(max(before, 0), self.count)


def place_of(index: int, total: int, count: int) -> int:
    """Where the held item `index` of `count` stands among `total`."""
    return (2 * index + 1) * total // (2 * count)


class Batches:
    """The held-out rows of a source in batches, the same each time; `group_batch` takes it in the place of a `Plan`.

    There are as many batches as the training's batch goes into the rows, at least one, and their sizes differ by one at the
    most: where the rows are fewer than two of the training's batches they make one. No rank is then without a row that has
    one in training.

    Args:
        total: rows of the source.
        count: of them that are held out, > 0.
        batch: rows of a global batch in training.
        seed: decides the order, the positives and the negatives.
    """

    def __init__(self, total: int, count: int, batch: int, seed: int) -> None:
        self.total, self.count, self.seeds = total, count, [seed]
        self.number = max(1, count // batch)

    def __len__(self) -> int:
        return self.number

    def begin(self, step: int) -> int:
        return (step - 1) * self.count // self.number

    def size(self, step: int) -> int:
        """Rows of batch `step`, counted from 1."""
        return self.begin(step + 1) - self.begin(step)

    def draw(self, step: int, part: range) -> Draw:
        """Rows of the source at the places `part` of a batch; in the order of a source neighbours may be alike."""
        places = shuffled(np.arange(part.start, part.stop) + self.begin(step), self.count, self.seeds[0])
        rows = np.array([place_of(place, self.total, self.count) for place in places.tolist()], np.int64)
        return Draw(np.zeros_like(rows), rows, np.zeros_like(rows))

    def source(self, step: int) -> int:
        """All batches have one source."""
        return 0

    def epoch(self, step: int) -> float:
        """They are not trained on."""
        return 0.0
