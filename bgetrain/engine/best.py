"""Scores of held-out data while training: when they are taken, and which step was the best."""

from collections.abc import Callable
from typing import NamedTuple


class Scoring(NamedTuple):
    """When held-out data are scored, and what follows from it.

    Attributes:
        score: figures of the model as it is, the same on every rank; all ranks call it together.
        every: steps between two scores; one more is taken after the last step.
        metric: the figure by which the best checkpoint is kept; less is better where its name ends with "loss".
        patience: scores in a row without a better one after which training stops; None: it never does.
    """

    score: Callable[[], dict[str, float]]
    every: int
    metric: str
    patience: int | None
