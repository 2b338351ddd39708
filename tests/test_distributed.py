"""Shares of a total and the gather, against concatenation in one process."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bgetrain import distributed
from bgetrain.types import World


def place(rank: int, size: int) -> World:
    return World(rank, size, rank, size, torch.device("cpu"))


def test_shares_are_floor_of_r_times_b_over_w_and_leave_nothing_out():
    for total, size in [(32768, 48), (7, 2), (7, 4), (8, 4), (1, 1), (5, 5), (3, 4)]:
        parts = [distributed.share(total, place(rank, size)) for rank in range(size)]
        assert [number for part in parts for number in part] == list(range(total))
        assert [len(part) for part in parts] == distributed.shares(total, place(0, size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert distributed.shares(7, place(0, 2)) == [3, 4]
    assert distributed.shares(7, place(0, 4)) == [1, 2, 2, 2]
    assert sorted(set(distributed.shares(32768, place(0, 48)))) == [682, 683]


COUNTS = {2: [(3, 4), (1, 5), (2, 2)], 4: [(1, 2, 2, 2), (3, 1, 4, 1), (2, 2, 2, 2)]}


def rows_of(rank: int, count: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(10 * rank + count), dtype=torch.float64)


def weights_of(rank: int, total: int) -> torch.Tensor:
    return torch.randn(total, 3, generator=torch.Generator().manual_seed(100 + rank), dtype=torch.float64)


def collectives(world, uneven: list[tuple[int, ...]]):
    gathered = []
    for counts in uneven:
        rows = rows_of(world.rank, counts[world.rank]).requires_grad_()
        whole = distributed.gather_rows(rows, counts, world)
        (whole.sin() * weights_of(world.rank, sum(counts))).sum().backward()
        gathered.append((whole.detach(), rows.grad))
    mine = np.full((world.rank, 2), world.rank, np.float32)  # rank 0 has none
    return {
        "gathered": gathered,
        "arrays": distributed.gather_arrays(mine, world),
        "sum": distributed.sum_over_ranks(torch.tensor([1.0, world.rank]), world).tolist(),
        "max": distributed.max_over_ranks(10 - world.rank, world),
        "first": distributed.from_first({"rank": world.rank}, world),
        "last": distributed.from_rank(np.full((2, 3), world.rank, np.float32), world.size - 1, world),
        "gathered to 1": distributed.gather_to(np.full((1, 2), world.rank), 1, world),
    }


@pytest.mark.parametrize("size", [2, 4])
def test_gather_forward_and_backward_equal_concatenation_for_uneven_counts(size, spawn):
    results = spawn(size, collectives, COUNTS[size])
    for number, counts in enumerate(COUNTS[size]):
        parts = [rows_of(rank, count).requires_grad_() for rank, count in enumerate(counts)]
        whole = torch.cat(parts)
        sum((whole.sin() * weights_of(rank, sum(counts))).sum() for rank in range(size)).backward()
        for rank, part in enumerate(parts):
            ours, gradient = results[rank]["gathered"][number]
            assert_close(ours, whole.detach(), rtol=0, atol=0)
            assert_close(gradient, part.grad, rtol=1e-12, atol=1e-12)
    assert [each.tolist() for each in results[1]["gathered to 1"]] == [[[rank, rank]] for rank in range(size)]
    assert [result["gathered to 1"] for rank, result in enumerate(results) if rank != 1] == [None] * (size - 1)
    for result in results:
        assert result["sum"] == [size, size * (size - 1) / 2]
        assert result["max"] == 10
        assert result["first"] == {"rank": 0}
        assert result["last"].tolist() == [[size - 1] * 3] * 2
        expected = [[rank, rank] for rank in range(size) for _ in range(rank)]
        np.testing.assert_array_equal(result["arrays"], np.array(expected, np.float32))
