"""Scores of single pairs: from embeddings as exact as these are, or by a cross-encoder."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bgetrain.distributed import gather_arrays, sum_over_ranks
from bgetrain.search.shards import Embeddings
from bgetrain.sources import Retrieval
from bgetrain.types import World

# numbers of Q queries, places of passages [Q, K] with -1 for none -> fp64 [Q, K]
Score = Callable[[Sequence[int], np.ndarray], np.ndarray]


def model_score(queries: Embeddings, passages: Embeddings, world: World) -> Score:
    """Similarities of embeddings, each computed where the passage is; every rank calls it equally often."""

    def score(numbers: Sequence[int], places: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(places >= 0)
        own = np.stack([np.asarray(numbers, np.int64)[rows], places[rows, columns]], axis=1)
        before = gather_arrays(np.array([len(own)]), world)[: world.rank].sum()
        asked = gather_arrays(own, world)  # [M, 2], of all ranks
        distinct, at = np.unique(asked[:, 0], return_inverse=True)
        vectors = np.zeros((len(distinct), queries.width), np.float32)
        here = (distinct >= queries.part.start) & (distinct < queries.part.stop)
        vectors[here] = queries.take(distinct[here])
        vectors = added(vectors, world)
        here = (asked[:, 1] >= passages.part.start) & (asked[:, 1] < passages.part.stop)
        values = np.zeros(len(asked))
        values[here] = similarities(vectors[at[here]], passages.take(asked[here, 1]))
        found = np.zeros(places.shape)
        found[rows, columns] = added(values, world)[before : before + len(own)]
        return found

    return score


def added(array: np.ndarray, world: World) -> np.ndarray:
    """The sum over ranks, of which one alone has a number that is not 0."""
    return sum_over_ranks(torch.from_numpy(array), world).numpy()


def pair_score(retrieval: Retrieval, judge: Callable[[Sequence[tuple[str, str]]], np.ndarray]) -> Score:
    """As `model_score`, by a cross-encoder, which sees queries without instruction; equal texts are scored once for a query."""

    def score(numbers: Sequence[int], places: np.ndarray) -> np.ndarray:
        texts = texts_at(retrieval, places)
        pairs: dict[tuple[int, str], int] = {}
        rows, columns = np.nonzero(places >= 0)
        asked = zip(rows.tolist(), places[rows, columns].tolist(), strict=True)
        which = [pairs.setdefault((row, texts[place]), len(pairs)) for row, place in asked]
        found = np.zeros(places.shape)
        found[rows, columns] = judge([(retrieval.queries[numbers[row]], text) for row, text in pairs])[which]
        return found

    return score


def texts_at(retrieval: Retrieval, places: np.ndarray) -> dict[int, str]:
    """Place -> text, for all places but -1."""
    distinct = np.unique(places)
    distinct = distinct[distinct >= 0]
    return dict(zip(distinct.tolist(), retrieval.passages.take(distinct.tolist()), strict=True))


def similarities(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Inner products that are the same bit for bit whatever else is computed beside them, unlike a matrix product's.

    Args:
        queries: fp32 [n, D].
        passages: fp32 [n, D].

    Returns:
        fp64 [n].
    """
    # a product of two fp32 is exact in fp64, and numpy adds up each row for itself
    return (queries.astype(np.float64) * passages).sum(axis=1)


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
        weights = {"dtype": dtype, "use_safetensors": True}  # a pickle can run code, and so can a folder's own modules
        model: Any = CrossEncoder(path, device=str(device), model_kwargs=weights, trust_remote_code=False)
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
