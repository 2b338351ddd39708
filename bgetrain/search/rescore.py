"""Scores of single pairs: from embeddings as exact as these are, or by a cross-encoder."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def similarities(queries: np.ndarray, passages: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Inner products that are the same bit for bit whatever else is computed beside them, unlike a matrix product's.

    Args:
        queries: fp32 [Q, D].
        passages: fp32 [U, D].
        at: int64 [Q, K], rows of `passages`; -1: none.

    Returns:
        fp64 [Q, K], 0 where there is none.
    """
    found = np.zeros(at.shape)
    for row, query in enumerate(queries.astype(np.float64)):
        # a product of two fp32 is exact in fp64, and numpy adds up each row for itself
        found[row] = np.where(at[row] >= 0, (passages[at[row]] * query).sum(axis=1), 0.0)
    return found


def cross_encoder(
    path: str, *, device: torch.device, dtype: torch.dtype, batch: int
) -> Callable[[Sequence[tuple[str, str]]], np.ndarray]:
    """Loads a sentence-transformers CrossEncoder.

    Args:
        path: folder or hub id.
        device: where it computes.
        dtype: of its weights.
        batch: pairs scored at once; the pairs of a call are taken in order of length.

    Returns:
        A function of N pairs (query, passage) -> fp64 [N], after the activation that the model was saved with: the sigmoid
        unless it names another.

    Raises:
        ValueError: sentence-transformers is not installed, or `path` is no model with one score for a pair.
    """
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        needs = "mine.rescore needs sentence-transformers, which is not installed"
        raise ValueError(f"{needs}: pip install sentence-transformers, or mine.rescore=null") from error
    try:
        model: Any = CrossEncoder(path, device=str(device), model_kwargs={"dtype": dtype})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"mine.rescore={path}: cannot be loaded as a CrossEncoder: {str(error).splitlines()[0]}") from error
    kinds = [str(each) for each in getattr(model.config, "architectures", None) or []]
    if not any(kind.endswith(("ForSequenceClassification", "ForCausalLM")) for kind in kinds):
        # transformers would give it a head of random weights, and say so in a warning only
        raise ValueError(
            f"mine.rescore={path} is {' '.join(kinds) or 'a model'} without a head that scores pairs: give a CrossEncoder"
        )
    if model.num_labels != 1:
        raise ValueError(f"mine.rescore={path} gives {model.num_labels} scores for a pair: it must give 1")

    def score(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        if not pairs:
            return np.zeros(0)
        found = model.predict(list(pairs), batch_size=batch, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, np.float64).reshape(len(pairs))

    return score
