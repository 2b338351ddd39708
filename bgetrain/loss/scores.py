"""What a query's positive is told from: log-sum-exps over its group, the pool's passages and the pool's queries."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bgetrain.loss.known import Known, unique
from bgetrain.loss.tiles import Above, Hidden, log_sum_exp


class Side(NamedTuple):
    """Embeddings of some texts.

    Attributes:
        rows: fp32 [N, D], unit.
        guide: the guide's of the same texts, fp32 [N, D'], unit; None without a guide.
    """

    rows: Tensor
    guide: Tensor | None

    def at(self, width: int) -> "Side":
        """With the first `width` of D alone, at length 1 again."""
        return self if width == self.rows.shape[1] else self._replace(rows=F.normalize(self.rows[:, :width], dim=-1))

    def every(self, step: int) -> "Side":
        """Rows 0, step, 2 step ..."""
        return Side(self.rows[::step], None if self.guide is None else self.guide[::step])


class Sides(NamedTuple):
    """Queries and passages, of this rank or of the pool that it is scored against."""

    query: Side
    passage: Side

    def at(self, width: int) -> "Sides":
        """As `Side.at`, of both."""
        return Sides(self.query.at(width), self.passage.at(width))


class Scoring(NamedTuple):
    """How scores are made and which of them count.

    Attributes:
        scale: fp32 [1], 1 / temperature.
        known: pairs that are no negatives; a query and its own positive are among them.
        first: number of this rank's first query in the pool.
        margin: candidates whose similarity exceeds the positive's by more are no negatives; None: all are.
        tile: rows and columns of a tile.
    """

    scale: Tensor
    known: Known
    first: int
    margin: float | None
    tile: int


class Grouped(NamedTuple):
    """Scores of the queries' own passages.

    Attributes:
        logits: fp32 [B, G], times scale; column 0 is the positive's.
        kept: the same, -inf where a passage is no negative.
        threshold: fp32 [B], in the judge's units, above which a candidate is no negative; None: there is none.
    """

    logits: Tensor
    kept: Tensor
    threshold: Tensor | None

    @property
    def positive(self) -> Tensor:
        """fp32 [B]."""
        return self.logits[:, 0]


def grouped(own: Sides, scoring: Scoring) -> Grouped:
    """Scores each query's own group."""
    logits = products(own.query.rows, own.passage.rows) * scoring.scale  # [B, G]
    group_size = logits.shape[1]
    hidden = torch.zeros(logits.shape, dtype=torch.bool)
    rows, columns = scoring.known.query_passage.T
    mine = (columns // group_size == rows + scoring.first) & (columns % group_size > 0)
    hidden[rows[mine], columns[mine] % group_size] = True
    hidden = hidden.to(logits.device)
    threshold = None
    if scoring.margin is not None:
        if own.query.guide is None or own.passage.guide is None:
            judged, margin = logits.detach(), scoring.margin * scoring.scale.detach()
        else:
            judged, margin = products(own.query.guide, own.passage.guide), logits.new_full((1,), scoring.margin)
        threshold = judged[:, 0] + margin
        hidden[:, 1:] |= judged[:, 1:] > threshold[:, None]
    return Grouped(logits, logits.masked_fill(hidden, -torch.inf), threshold)


def products(query: Tensor, passage: Tensor) -> Tensor:
    """[B, D], [B * G, D] -> [B, G]."""
    return torch.einsum("bd,bgd->bg", query, passage.view(len(query), -1, query.shape[1]))


def against(anchor: Side, candidate: Side, pairs: np.ndarray, group: Grouped, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """`log_sum_exp` over candidates but for `pairs` and those above the threshold of the anchor's group."""
    above = None
    if group.threshold is not None:
        judges = None if anchor.guide is None or candidate.guide is None else (anchor.guide, candidate.guide)
        above = Above(group.threshold, judges)
    hide = Hidden(pairs, scoring.tile, anchor.rows.device, above)
    return log_sum_exp(anchor.rows, candidate.rows, scoring.scale, hide=hide)


def strange_passages(own: Sides, pool: Sides, group: Grouped, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """Queries against the passages of other groups: log-sum-exp [B], highest score [B], pairs taken out by text or margin."""
    queries, group_size = group.logits.shape
    rows = np.repeat(np.arange(queries), group_size)
    columns = scoring.first * group_size + np.arange(queries * group_size)
    pairs = unique(scoring.known.query_passage, np.stack([rows, columns], axis=1))
    sums, top, hidden = against(own.query, pool.passage, pairs, group, scoring)
    return sums, top, hidden - queries * group_size


def strange_queries(own: Sides, pool: Sides, group: Grouped, scoring: Scoring) -> Tensor:
    """Positives against the pool's other queries: log-sum-exp [B]."""
    positive = own.passage.every(group.logits.shape[1])
    return against(positive, pool.query, scoring.known.positive_query, group, scoring)[0]


def same_side(own: Sides, pool: Sides, group: Grouped, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Queries against other queries, positives against other positives: log-sum-exp [B] each."""
    group_size = group.logits.shape[1]
    queries = against(own.query, pool.query, scoring.known.query_query, group, scoring)[0]
    positive, positives = own.passage.every(group_size), pool.passage.every(group_size)
    passages = against(positive, positives, scoring.known.positive_positive, group, scoring)[0]
    return queries, passages
