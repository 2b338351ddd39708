"""Corpora: passages by place and by name."""

from collections.abc import Sequence

import numpy as np


class ListedPassages:
    """A corpus in memory."""

    def __init__(self, names: Sequence[str], texts: Sequence[str]) -> None:
        self.listed, self.texts = names, texts
        self.places = {name: place for place, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: Sequence[int]) -> list[str]:
        return [self.texts[place] for place in places]

    def names(self, places: Sequence[int]) -> list[str]:
        return [self.listed[place] for place in places]

    def find(self, names: Sequence[str]) -> np.ndarray:
        return np.array([self.places.get(name, -1) for name in names], np.int64)
