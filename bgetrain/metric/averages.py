"""What a model scores on the tasks of a benchmark, and means of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

# C-Pack, arXiv:2309.07597, Table 2; summarization is in MTEB alone
ORDER = ("Retrieval", "STS", "PairClassification", "Classification", "Reranking", "Clustering", "Summarization")


class Score(NamedTuple):
    """What one task says.

    Attributes:
        task: its name.
        type: of the task.
        metric: its main one.
        value: from 0 to 1, mean over splits and languages; nan where it is not defined.
    """

    task: str
    type: str
    metric: str
    value: float


def averages(scores: Sequence[Score]) -> dict[str, float]:
    """Means as MTEB reports them: over all tasks, over types, and of each type; what has a task without a score is left out.

    Returns:
        `mean_task`, `mean_type`, then the types in C-Pack's order.
    """
    kinds = sorted({each.type for each in scores}, key=lambda kind: (ORDER.index(kind) if kind in ORDER else len(ORDER), kind))
    by_type = {kind: [each.value for each in scores if each.type == kind] for kind in kinds}
    means = {kind: sum(values) / len(values) for kind, values in by_type.items()}
    task = sum(each.value for each in scores) / len(scores)
    found = {"mean_task": task, "mean_type": sum(means.values()) / len(means), **means}
    return {name: value for name, value in found.items() if math.isfinite(value)}
