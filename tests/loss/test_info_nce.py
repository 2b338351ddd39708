"""InfoNCE by hand, against the loss written out pair by pair, and the slices of many ranks against the whole batch."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bgetrain import distributed
from bgetrain.loss import info_nce as module
from bgetrain.loss import known
from bgetrain.loss.info_nce import info_nce
from bgetrain.loss.tiles import Hidden, log_sum_exp
from bgetrain.types import Contrast, Ragged, TextKeys, World

sys.path.insert(0, str(Path(__file__).parent.parent))
from loss.reference import Batch, losses

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
PLAIN = dict(
    temperature=0.05, learnable_temperature=False, negatives="world", directions="forward", mask_equal=False, mask_margin=None,
    matryoshka=[], matryoshka_weights=[], teacher="none", teacher_weight=1.0, teacher_temperature=1.0, contrastive_weight=1.0,
    tile=1024,
)  # fmt: skip


def loss_of(query, passage, counts, world=ALONE, keys=None, taught=None, guide=None, shift=None, **changes):
    contrast = Contrast(query, passage, keys, taught, guide, shift)
    return info_nce(contrast, counts=counts, world=world, **(PLAIN | changes))


def unit(count: int, seed: int, width: int = 16) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_two_queries_by_hand():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    output = loss_of(query, query, [2], temperature=0.5)
    assert float(output.loss) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)
    assert float(output.metrics["accuracy"]) == 1.0
    swapped = loss_of(query, query.flip(0), [2], temperature=0.5)
    assert float(swapped.loss) == pytest.approx(2 + math.log(1 + math.exp(-2)), rel=1e-6)
    assert float(swapped.metrics["accuracy"]) == 0.0


def test_group_sees_its_own_passages_only():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    passage = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    output = loss_of(query, passage, [2], temperature=1.0, negatives="group")
    expected = (math.log(1 + math.exp(0.6 - 1)) + math.log(1 + math.exp(0 - 1))) / 2
    assert float(output.loss) == pytest.approx(expected, rel=1e-6)


def made_batch(group_size: int) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """11 rows with every kind of equal text: repeated queries, shared positives, a positive among another's negatives ..."""
    draw = np.random.default_rng(group_size)
    queries = [100, 101, 102, 100, 104, 105, 106, 107, 108, 109, 101]
    groups = [[200 + number, *draw.integers(300, 340, group_size - 1).tolist()] for number in range(11)]
    groups[4][0] = groups[2][0]  # two queries with one positive
    groups[5][0] = 106  # the positive of one is the text of another query
    listed = [[group[0]] for group in groups]
    listed[7] += [208, 209]  # positives that the row lists but does not show; others show them
    if group_size > 1:
        groups[6][1] = 206  # a negative that is its own positive
        groups[8][1] = 108  # a negative that is the query
        groups[9][1] = 200  # another's positive among the negatives
    guide = (unit(11, 7, 5), unit(11 * group_size, 8, 5))
    teacher = torch.from_numpy(draw.normal(size=(11, group_size)))
    return Batch(queries, groups, listed, teacher, guide), unit(11, 1), unit(11 * group_size, 2)


def keys_of(batch: Batch, part: slice = slice(None)) -> TextKeys:
    listed = batch.listed[part]
    passages = [text for group in batch.groups[part] for text in group]
    positives = Ragged(torch.tensor([text for texts in listed for text in texts]), torch.tensor([len(texts) for texts in listed]))
    return TextKeys(torch.tensor(batch.queries[part]), torch.tensor(passages), positives)


CASES = {
    "plain": {},
    "equal": {"mask_equal": True},
    "margin": {"mask_margin": 0.1},
    "both masks": {"mask_equal": True, "mask_margin": -0.2},
    "guide": {"mask_equal": True, "mask_margin": 0.05, "guide": True},
    "both directions": {"directions": "both", "mask_equal": True},
    "both directions, guide": {"directions": "both", "mask_equal": True, "mask_margin": 0.0, "guide": True},
    "joint": {"directions": "joint"},
    "joint, masks": {"directions": "joint", "mask_equal": True, "mask_margin": 0.0},
    "joint, guide": {"directions": "joint", "mask_equal": True, "mask_margin": 0.1, "guide": True},
    "group": {"negatives": "group", "mask_equal": True, "mask_margin": 0.0},
    "kl": {"teacher": "group", "teacher_weight": 0.7, "teacher_temperature": 0.5, "mask_equal": True},
    "kl in groups": {"teacher": "group", "negatives": "group", "contrastive_weight": 0.3},
    "m3": {"teacher": "batch", "contrastive_weight": 0.0, "teacher_temperature": 2.0},
    "m3 with masks": {"teacher": "batch", "contrastive_weight": 0.5, "mask_equal": True},
}


@pytest.mark.parametrize("tile", [3, 1024])
@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_those_of_the_loss_written_out(name, group_size, tile):
    batch, query, passage = made_batch(group_size)
    query.requires_grad_()
    passage.requires_grad_()
    options = dict(CASES[name])
    guided = options.pop("guide", False)
    sides = {"keys": keys_of(batch), "taught": batch.teacher, "guide": batch.guide if guided else None}
    output = loss_of(query, passage, [11], **sides, tile=tile, **options)
    ours = torch.autograd.grad(output.loss, [query, passage])
    plain = PLAIN | options
    for key in ("learnable_temperature", "matryoshka", "matryoshka_weights", "tile"):
        plain.pop(key)
    group_only = plain.pop("negatives") == "group"
    written = batch if guided else batch._replace(guide=None)
    rows, masked = losses(query, passage, written, [list(range(11))] * 11, group_only=group_only, **plain)
    expected = torch.autograd.grad(rows.mean(), [query, passage])
    assert_close(output.loss, rows.mean(), rtol=1e-10, atol=1e-15)
    for mine, theirs in zip(ours, expected, strict=True):
        assert_close(mine, theirs, rtol=1e-8, atol=1e-12)
    assert int(output.metrics["masked_negatives"]) == masked
    if name in ("equal", "both masks", "guide"):
        assert masked > 0


@pytest.mark.parametrize("weights", [[], [1.0, 3.0]])
def test_matryoshka_averages_the_losses_of_leading_parts(weights):
    _, query, passage = made_batch(2)
    query.requires_grad_()
    output = loss_of(query, passage, [11], matryoshka=[4, 16], matryoshka_weights=weights)
    parts = []
    for width in (4, 16):
        short = [F.normalize(each[:, :width], dim=-1) if width < 16 else each for each in (query, passage)]
        scores = short[0] @ short[1].T / 0.05
        parts.append(F.cross_entropy(scores, torch.arange(11) * 2))
    first, second = weights or [1.0, 1.0]
    expected = (first * parts[0] + second * parts[1]) / (first + second)
    assert_close(output.loss, expected, rtol=1e-10, atol=0)
    ours, theirs = (torch.autograd.grad(each, query)[0] for each in (output.loss, expected))
    assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    assert float(output.metrics["loss_4"]) == pytest.approx(float(parts[0]))


def test_a_learnt_temperature_s_gradient_equals_finite_differences():
    _, query, passage = made_batch(2)
    shift = torch.tensor([0.1], requires_grad=True)

    def loss(value):
        return loss_of(query, passage, [11], shift=value, learnable_temperature=True, directions="joint", tile=4).loss

    (gradient,) = torch.autograd.grad(loss(shift), shift)
    step = 1e-3  # the shift is fp32
    difference = (loss(shift.detach() + step) - loss(shift.detach() - step)) / (2 * step)
    assert float(gradient) == pytest.approx(float(difference), rel=1e-3)
    metrics = loss_of(query, passage, [11], shift=shift, learnable_temperature=True).metrics
    assert float(metrics["temperature"]) == pytest.approx(0.05 / math.exp(0.1), rel=1e-6)
    hottest = loss_of(query, passage, [11], shift=torch.tensor([9.0]), learnable_temperature=True)
    assert float(hottest.metrics["temperature"]) == pytest.approx(0.01)  # CLIP's bound


def test_tiles_equal_finite_differences_with_hidden_candidates():
    anchor, candidate = unit(5, 3, 4).requires_grad_(), unit(7, 4, 4).requires_grad_()
    scale = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    pairs = np.array([[0, 0], [1, 6], [4, 3], *[[2, column] for column in range(7)]])  # anchor 2 has none left

    def sums(anchor, candidate, scale):
        found = log_sum_exp(anchor, candidate, scale, hide=Hidden(pairs, 2, torch.device("cpu"), None))[0]
        return torch.cat([found[:2], found[3:]])

    assert torch.autograd.gradcheck(sums, (anchor, candidate, scale))
    everything, top, hidden = log_sum_exp(anchor, candidate, scale, hide=Hidden(pairs, 2, torch.device("cpu"), None))
    assert everything[2] == top[2] == -math.inf
    assert int(hidden) == 10
    everything[2].backward()
    assert anchor.grad.abs().sum() == 0


def test_scores_of_a_hundred_do_not_overflow_in_fp32():
    query = unit(6, 1).float()
    output = loss_of(query, query.roll(1, 0), [6], temperature=0.001)
    scores = query.double() @ query.roll(1, 0).double().T / 0.001
    assert float(output.loss) == pytest.approx(float(F.cross_entropy(scores, torch.arange(6))), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"directions": "joint", "mask_equal": True}, {"teacher": "batch", "mask_margin": 0.3}])
def test_losses_and_gradients_of_48_ranks_slices_add_up_to_those_of_the_whole_batch(options, monkeypatch):
    """1,000 queries: ranks have 20 or 21. The gather of each rank is the whole, which the other ranks would bring."""
    total, size, group_size = 1000, 48, 2
    query, passage = unit(total, 1).requires_grad_(), unit(total * group_size, 2).requires_grad_()
    draw = np.random.default_rng(0)
    groups = draw.integers(0, 1500, (total, group_size)).tolist()
    batch = Batch(draw.integers(2000, 2800, total).tolist(), groups, [[group[0]] for group in groups])
    teacher = torch.randn(total, group_size)
    counts = distributed.shares(total, World(0, size, 0, 1, torch.device("cpu")))
    assert sorted(set(counts)) == [20, 21]
    slices = [slice(sum(counts[:rank]), sum(counts[: rank + 1])) for rank in range(size)]
    packed = [
        np.concatenate([np.asarray(each) for each in (keys.query, keys.positives.lengths, keys.passage, keys.positives.ids)])
        for keys in (keys_of(batch, part) for part in slices)
    ]

    def gather(rows, rows_of_ranks, world):
        whole = query if sum(rows_of_ranks) == total else passage
        first = sum(rows_of_ranks[: world.rank])
        assert_close(rows, whole[first : first + rows_of_ranks[world.rank]], rtol=0, atol=0)
        return whole

    def gather_keys(array, world):
        assert np.array_equal(array, packed[world.rank])
        return np.concatenate(packed)

    whole = loss_of(query, passage, [total], keys=keys_of(batch), taught=teacher, **options)
    monkeypatch.setattr(module, "gather_rows", gather)
    monkeypatch.setattr(known, "gather_arrays", gather_keys)
    loss, figures = torch.zeros(()), {name: 0.0 for name in whole.metrics}
    for rank, part in enumerate(slices):
        world = World(rank, size, rank, size, torch.device("cpu"))
        own = passage[part.start * group_size : part.stop * group_size]
        output = loss_of(query[part], own, counts, world, keys_of(batch, part), teacher[part], tile=300, **options)
        loss = loss + output.loss
        figures = {name: value + float(output.metrics[name]) for name, value in figures.items()}
    assert_close(loss, whole.loss, rtol=1e-12, atol=0)
    assert figures == pytest.approx({name: float(value) for name, value in whole.metrics.items()}, rel=1e-6)
    ours, expected = (torch.autograd.grad(each, [query, passage]) for each in (loss, whole.loss))
    for mine, theirs in zip(ours, expected, strict=True):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-14)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="5 passages cannot be split evenly over 2 queries"):
        loss_of(unit(2, 1), unit(5, 2), [2])
    ones = torch.ones(9000, dtype=torch.int64)
    same = TextKeys(0 * ones, ones, Ragged(ones, ones))
    with pytest.raises(ValueError, match=r"equal texts of the batch make 81,000,000 pairs .* or loss.mask_equal=false"):
        known.known_pairs(same, [9000], None, forward=True)


def test_many_rows_with_one_positive_cost_no_more_than_their_pairs():
    """1,000 equal rows: 10^6 pairs, where joins over rows in turn would make 10^9."""
    ones = torch.ones(1000, dtype=torch.int64)
    found = known.known_pairs(TextKeys(0 * ones, ones, Ragged(ones, ones)), [1000], None, forward=False)
    assert [len(each) for each in found] == [10**6] * 4
