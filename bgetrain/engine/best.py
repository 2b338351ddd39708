"""Scores of held-out data while training: when they are taken, and which step was the best."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Scoring(NamedTuple):
    """When held-out data are scored, and what follows from it.

    Attributes:
        score: figures of the model as it is, the same on every rank; all ranks call it together.
        every: steps between two scores; one more is taken after the last step.
        metric: the figure by which the best checkpoint is kept; less is better where its name has "loss" in it before
            any slash.
        patience: scores in a row without a better one after which training stops; None: it never does.
    """

    score: Callable[[], dict[str, float]]
    every: int
    metric: str
    patience: int | None


class Best:
    """The best step so far by one figure, and how many scores have not been better since.

    Args:
        scoring: None: nothing is scored, and nothing is ever better.
        state: what `state` returned, of the run that goes on; empty at its beginning.
    """

    def __init__(self, scoring: Scoring | None, state: Mapping[str, Any]) -> None:
        self.scoring = scoring
        goes_on = scoring is not None and state.get("metric") == scoring.metric
        self.step: int = state["step"] if goes_on else 0
        self.value: float | None = state["value"] if goes_on else None
        self.waited: int = state["waited"] if goes_on else 0

    def state(self) -> dict[str, Any]:
        metric = self.scoring.metric if self.scoring else None
        return {"metric": metric, "step": self.step, "value": self.value, "waited": self.waited}

    def due(self, step: int, last: bool) -> bool:
        """Whether held-out data are scored after `step`."""
        return self.scoring is not None and (step % self.scoring.every == 0 or last)

    def add(self, step: int, figures: Mapping[str, float]) -> bool:
        """Takes the figures of a score; returns whether they are the best so far. One that is not a number never is."""
        assert self.scoring is not None
        value, metric = figures[self.scoring.metric], self.scoring.metric
        gain = 0.0 if self.value is None else (self.value - value) if "loss" in metric.partition("/")[0] else (value - self.value)
        better = gain > 0 or (self.value is None and value == value)
        self.waited = 0 if better else self.waited + 1
        if better:
            self.step, self.value = step, value
        return better

    def exhausted(self) -> bool:
        """Whether training should stop: patience has run out."""
        return self.scoring is not None and self.scoring.patience is not None and self.waited >= self.scoring.patience
