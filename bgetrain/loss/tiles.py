"""log-sum-exp over the scores of many candidates, in memory that does not grow with their number."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# X anchors, Y candidates


class Above:
    """Pairs that score higher than a threshold, by the trained model's own scores or by a guide's.

    Args:
        threshold: fp32 [X], in the units of the scores judged.
        guide: unit rows [X, D'] and [Y, D'] whose products are judged; None: the scores themselves.
    """

    def __init__(self, threshold: Tensor, guide: tuple[Tensor, Tensor] | None) -> None:
        self.threshold, self.guide = threshold, guide

    def __call__(self, scores: Tensor, row: int, column: int) -> Tensor:
        """bool [x, y] of a tile whose corner lies at (row, column)."""
        rows, columns = slice(row, row + scores.shape[0]), slice(column, column + scores.shape[1])
        judged = scores if self.guide is None else self.guide[0][rows] @ self.guide[1][columns].T
        return judged > self.threshold[rows, None]


class Hidden:
    """Takes pairs out of a matrix of scores, tile by tile.

    Args:
        pairs: each once.
        tile: rows and columns of a tile.
        above: pairs whose judge scores higher than the threshold of their anchor; None: none.
    """

    def __init__(self, pairs: np.ndarray, tile: int, device: torch.device, above: Above | None) -> None:
        self.tile, self.above, self.count = tile, above, len(pairs)
        self.width = int(pairs[:, 1].max(initial=0)) // tile + 1
        numbers = pairs[:, 0] // tile * self.width + pairs[:, 1] // tile
        order = np.argsort(numbers, kind="stable")
        self.numbers = numbers[order]
        self.places = torch.from_numpy(pairs[order] % tile).to(device)  # within their tile

    def __call__(self, scores: Tensor, row: int, column: int) -> Tensor:
        """Sets hidden scores of a tile to -inf.

        Args:
            scores: [x, y], changed in place.
            row, column: where its corner lies, multiples of `tile`.
        """
        if self.above is not None:
            scores.masked_fill_(self.above(scores, row, column), -torch.inf)
        if column // self.tile < self.width:
            number = row // self.tile * self.width + column // self.tile
            first, last = np.searchsorted(self.numbers, [number, number + 1])
            here = self.places[first:last]
            scores[here[:, 0], here[:, 1]] = -torch.inf
        return scores


def log_sum_exp(anchor: Tensor, candidate: Tensor, scale: Tensor, *, hide: Hidden) -> tuple[Tensor, Tensor, Tensor]:
    """log sum over candidates of exp(scale * anchor . candidate), tile by tile with a running maximum.

    The scores are computed again in the backward pass: 2 X Y D operations forward, 6 X Y D backward; memory is
    O(tile^2 + (X + Y) D).

    Args:
        anchor: fp32 [X, D].
        candidate: fp32 [Y, D].
        scale: fp32 [1], 1 / temperature; may require a gradient.
        hide: takes candidates out, anchor by anchor.

    Returns:
        fp32 [X], -inf where no candidate is left; differentiable.
        fp32 [X], the highest score of each anchor, -inf where none is left; not differentiable.
        fp32 scalar, how many pairs were hidden; not differentiable.
    """
    result: tuple[Tensor, Tensor, Tensor] = TiledLogSumExp.apply(anchor, candidate, scale, hide)
    return result


class TiledLogSumExp(torch.autograd.Function):
    """What `log_sum_exp` describes."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, candidate: Tensor, scale: Tensor, hide: Hidden) -> tuple[Tensor, ...]:
        scaled = anchor * scale
        sums, highest = anchor.new_empty(len(anchor)), anchor.new_empty(len(anchor))
        tile, hidden = hide.tile, anchor.new_full((), hide.count if hide.above is None else 0)
        for row in range(0, len(anchor), tile):
            block = scaled[row : row + tile]
            top = block.new_full((len(block),), -torch.inf)
            total = torch.zeros_like(top)
            for column in range(0, len(candidate), tile):
                scores = hide(block @ candidate[column : column + tile].T, row, column)  # [x, y]
                if hide.above is not None:
                    hidden += torch.isneginf(scores).sum()
                higher = torch.maximum(top, scores.amax(1))
                # where all are hidden so far the maximum is -inf, and -inf - -inf no number
                base = higher.masked_fill(torch.isneginf(higher), 0.0)
                total = total * (top - base).exp() + scores.sub_(base[:, None]).exp_().sum(1)
                top = higher
            sums[row : row + tile] = total.log() + top.masked_fill(torch.isneginf(top), 0.0)
            highest[row : row + tile] = top
        ctx.save_for_backward(anchor, candidate, scale, sums)
        ctx.hide = hide
        ctx.mark_non_differentiable(highest, hidden)
        return sums, highest, hidden

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        anchor, candidate, scale, sums = ctx.saved_tensors
        hide, tile, above = ctx.hide, ctx.hide.tile, gradients[0]
        scaled = anchor * scale
        base = sums.masked_fill(torch.isneginf(sums), torch.inf)  # no candidate: all probabilities 0
        to_anchor, to_candidate = torch.zeros_like(anchor), torch.zeros_like(candidate)
        to_scale = torch.zeros_like(scale)
        for row in range(0, len(anchor), tile):
            rows = slice(row, row + tile)
            for column in range(0, len(candidate), tile):
                columns = slice(column, column + tile)
                scores = hide(scaled[rows] @ candidate[columns].T, row, column)
                weights = scores.sub_(base[rows, None]).exp_().mul_(above[rows, None])  # d loss / d scores
                to_anchor[rows].addmm_(weights, candidate[columns])
                to_candidate[columns].addmm_(weights.T, scaled[rows])
        if ctx.needs_input_grad[2]:
            to_scale += (to_anchor * anchor).sum()
        return to_anchor.mul_(scale), to_candidate, to_scale, None
