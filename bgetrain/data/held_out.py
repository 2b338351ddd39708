"""Texts that are kept back from training, to be scored while it runs."""

from collections.abc import Sequence

from bgetrain.sources import Texts


def held_out(texts: Texts, count: int) -> tuple[Texts, Texts]:
    """Parts texts in those to train on and `count` others, spread evenly over the source.

    The held texts are the middle ones of `count` equal parts; both views keep the order of the source, and neither has a
    list of what is in it.

    Args:
        texts: whole documents, so that no part of one is in both.
        count: texts to hold out, >= 0, below half of all.

    Raises:
        ValueError: `count` is half of the texts or more.
    """
    if 2 * count >= len(texts):
        raise ValueError(
            f"{count:,} texts cannot be held out of {len(texts):,}: it must be below half of them, "
            f"{max(len(texts) - 1, 0) // 2:,} at most"
        )
    return View(texts, count, held=False), View(texts, count, held=True)


class View:
    """The texts that are held out, or the others.

    Attributes:
        notes: those of the texts, if they have any.
    """

    def __init__(self, texts: Texts, count: int, *, held: bool) -> None:
        self.texts, self.count, self.held = texts, count, held
        self.notes: Sequence[str] = getattr(texts, "notes", [])

    def __len__(self) -> int:
        return self.count if self.held else len(self.texts) - self.count

    def take(self, indices: Sequence[int]) -> list[str]:
        return self.texts.take([self.place(int(index)) for index in indices])

    def place(self, index: int) -> int:
        """Where a text of this view stands in the source."""
        total, size = len(self.texts), len(self)
        if not 0 <= index < size:
            raise IndexError(f"text {index} of {size}")
        if self.held:
            return (2 * index + 1) * total // (2 * self.count)
        # held text k stands at (2 k + 1) total // (2 count): before it are that many less k of this view. Those k for which
        # this is no more than `index` stand before the text: 2 k (total - count) < 2 count (index + 1) - total
        before = -(-(2 * self.count * (index + 1) - total) // (2 * (total - self.count)))
        return index + min(max(before, 0), self.count)
