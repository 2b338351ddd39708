"""InfoNCE by hand, and the slices of many ranks against the whole batch."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bgetrain import distributed
from bgetrain.loss import info_nce as module
from bgetrain.loss.info_nce import info_nce
from bgetrain.types import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def test_two_queries_by_hand():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    passage = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    output = info_nce(query, passage, counts=[2], world=ALONE, temperature=0.5, negatives="world")
    assert float(output.loss) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)
    assert float(output.metrics["accuracy"]) == 1.0
    swapped = info_nce(query, passage.flip(0), counts=[2], world=ALONE, temperature=0.5, negatives="world")
    assert float(swapped.loss) == pytest.approx(2 + math.log(1 + math.exp(-2)), rel=1e-6)
    assert float(swapped.metrics["accuracy"]) == 0.0


def test_group_sees_its_own_passages_only():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    passage = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    output = info_nce(query, passage, counts=[2], world=ALONE, temperature=1.0, negatives="group")
    expected = (math.log(1 + math.exp(0.6 - 1)) + math.log(1 + math.exp(0 - 1))) / 2
    assert float(output.loss) == pytest.approx(expected, rel=1e-6)


def unit(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("group_size", [1, 3])
def test_losses_and_gradients_of_48_ranks_slices_add_up_to_those_of_the_whole_batch(group_size, monkeypatch):
    """1,000 queries: ranks have 20 or 21. The gather of each rank is the whole, which the other ranks would bring."""
    total, size = 1000, 48
    query = unit(total, 1).requires_grad_()
    passage = unit(total * group_size, 2).requires_grad_()
    counts = distributed.shares(total, World(0, size, 0, 1, torch.device("cpu")))
    assert sorted(set(counts)) == [20, 21]

    def gather(rows, rows_of_ranks, world):
        first = sum(rows_of_ranks[: world.rank])
        assert_close(rows, passage[first : first + rows_of_ranks[world.rank]], rtol=0, atol=0)
        assert sum(rows_of_ranks) == len(passage)
        return passage

    monkeypatch.setattr(module, "gather_rows", gather)
    loss, accuracy = torch.zeros(()), 0.0
    for rank in range(size):
        world = World(rank, size, rank, size, torch.device("cpu"))
        part = distributed.share(total, world)
        own = passage[part.start * group_size : part.stop * group_size]
        output = info_nce(query[part.start : part.stop], own, counts=counts, world=world, temperature=0.05, negatives="world")
        loss, accuracy = loss + output.loss, accuracy + float(output.metrics["accuracy"])
    ours = torch.autograd.grad(loss, [query, passage])

    scores = query @ passage.T / 0.05
    right = torch.arange(total) * group_size
    whole = (scores.logsumexp(dim=1) - scores[torch.arange(total), right]).mean()
    assert_close(loss, whole, rtol=1e-12, atol=0)
    assert accuracy == pytest.approx(float((scores.argmax(dim=1) == right).double().mean()))
    for mine, expected in zip(ours, torch.autograd.grad(whole, [query, passage]), strict=True):
        assert_close(mine, expected, rtol=1e-9, atol=1e-14)


def test_passages_that_do_not_divide_over_queries_are_refused():
    with pytest.raises(ValueError, match="5 passages cannot be split evenly over 2 queries"):
        info_nce(unit(2, 1), unit(5, 2), counts=[2], world=ALONE, temperature=1.0, negatives="world")
