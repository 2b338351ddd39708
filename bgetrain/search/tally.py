"""Counts of a filter's pairs that can be added up over any number of rows, and what they say.

A similarity is counted in one of 2,000 bins: figures made of these counts are right to 0.001.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BINS = 2000  # from -1 to 1
STEPS = 10_000  # similarities are whole multiples of 1 / STEPS, as filtering.similarities rounds them
CUTOFFS = (1, 2, 3, 5, 10, 20, 50, 100, 1000, 10_000, 100_000)  # ranks at which pairs are counted
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
THRESHOLDS = tuple(step / 20 for step in range(2, 20))  # 0.1 to 0.95


def counted(
    owners: np.ndarray, similarity: np.ndarray, rank: np.ndarray | None, why: Sequence[str | None], sources: Sequence[str]
) -> dict[str, Any]:
    """Counts the rows and pairs of a part.

    Args:
        owners: int64 [M], the row of each pair.
        similarity: float64 [M], whole multiples of 1 / STEPS.
        rank: int64 [M], from 1; None: there is no pool.
        why: of each pair what drops it, "similarity" or "rank"; None: it is kept.
        sources: of each row where it comes from.

    Returns:
        Whole numbers under names, some a level deeper; as large as the bins and the sources are many.
    """
    kept = np.array([each is None for each in why], bool)
    alive = np.bincount(owners[kept], minlength=len(sources)) > 0
    found: dict[str, Any] = {
        "rows": len(sources),
        "rows_kept": int(alive.sum()),
        "rows_dropped": int((~alive).sum()),
        "positives": len(why),
        "positives_kept": int(kept.sum()),
        "positives_dropped_by_similarity": sum(each == "similarity" for each in why),
        "positives_dropped_by_rank": sum(each == "rank" for each in why),
        "similarity": {"kept": binned(similarity[kept]), "dropped": binned(similarity[~kept])},
        "sources": {},
    }
    if rank is not None:
        found["ranked_within"] = {str(cutoff): int((rank <= cutoff).sum()) for cutoff in CUTOFFS}
    for name, lives in zip(sources, alive.tolist(), strict=True):
        each = found["sources"].setdefault(name, {"rows": 0, "rows_kept": 0})
        each["rows"] += 1
        each["rows_kept"] += int(lives)
    return found


def plus(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the numbers under the same keys, at any depth."""
    summed = dict(one)
    for key, value in other.items():
        summed[key] = plus(one.get(key, {}), value) if isinstance(value, Mapping) else one.get(key, 0) + value
    return summed


def binned(similarity: np.ndarray) -> dict[str, int]:
    """Bin -> how many similarities it has; bin b begins at 2 b / BINS - 1."""
    steps = np.round(similarity * STEPS).astype(np.int64) + STEPS  # in whole numbers the edges are exact
    bins, counts = np.unique((steps * BINS // (2 * STEPS)).clip(0, BINS - 1), return_counts=True)
    return {str(place): count for place, count in zip(bins.tolist(), counts.tolist(), strict=True)}


def unbinned(counts: Mapping[str, int], parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Where the bins begin and how many each has.

    Args:
        counts: as `binned` has them.
        parts: in how many equal bins each is cut, so that a picture's own bins need not fall on theirs.

    Returns:
        Two of float64 [bins * parts], the first rising.
    """
    order = sorted(counts, key=int)
    begins = (2 * np.array([int(place) for place in order], float)[:, None] - BINS + 2 * np.arange(parts) / parts) / BINS
    return begins.ravel(), np.repeat([counts[place] / parts for place in order], parts)


def summary(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a report from summed counts.

    Returns:
        The counts of rows and positives, `quantiles` of the similarity, `kept_at`: the share of positives that each
        threshold would keep, and `ranked_within`: the share at that rank or a better one, where there is a pool.
    """
    every = plus(counts["similarity"]["kept"], counts["similarity"]["dropped"])
    begins, sizes = unbinned(every)
    total = max(1, counts["positives"])
    places = np.searchsorted(sizes.cumsum(), np.array(QUANTILES) * sizes.sum()).clip(max=max(0, len(begins) - 1))
    found: dict[str, Any] = {name: value for name, value in counts.items() if isinstance(value, int)}
    found["quantiles"] = {str(share): float(begins[place]) for share, place in zip(QUANTILES, places, strict=True)}
    found["kept_at"] = {str(least): float(sizes[begins >= least].sum() / total) for least in THRESHOLDS}
    if "ranked_within" in counts:
        found["ranked_within"] = {cutoff: count / total for cutoff, count in counts["ranked_within"].items()}
    found["sources"] = {name: dict(each) for name, each in sorted(counts["sources"].items())}
    return found
