"""Texts that are kept back from training, to be scored while it runs."""

from bgetrain.sources import Texts


def held_out(texts: Texts, count: int) -> tuple[Texts, Texts]:
    """Parts texts in those to train on and `count` others, spread evenly over the source."""
    raise NotImplementedError
