"""Objectives of masked auto-encoding: RetroMAE, DupMAE, and the masked language model alone."""

from typing import Literal

from bgetrain.types import NonNegativeFloat, Objective


def retromae(*, query: Literal["position", "embedding"]) -> Objective:
    """Token-mean cross-entropy of the encoder plus that of the decoder, 1 : 1."""
    raise NotImplementedError


def dupmae(
    *, query: Literal["position", "embedding"], bag_of_words_weight: NonNegativeFloat, repeated: Literal["once", "accumulated"]
) -> Objective:
    """RetroMAE's loss and a bag of words."""
    raise NotImplementedError


def mlm() -> Objective:
    """Masked language model alone."""
    raise NotImplementedError
