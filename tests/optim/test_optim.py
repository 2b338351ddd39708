"""Parameter groups and the learning rate of each step."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, get_linear_schedule_with_warmup

from bgetrain.optim.adamw import adamw
from bgetrain.optim.schedule import linear
from bgetrain.optim.sgd import sgd


def bert() -> BertModel:
    sizes = dict(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return BertModel(BertConfig(**sizes, max_position_embeddings=8))


def test_biases_and_norms_do_not_decay_and_everything_else_does():
    model = bert()
    optimizer, _ = adamw(model.named_parameters(), lr=0.1, weight_decay=0.3, betas=[0.8, 0.95], eps=1e-7, warmup_ratio=0.1)
    decay = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    expected = {id(each): 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.3 for name, each in model.named_parameters()}
    assert decay == expected
    assert 0.0 in decay.values() and 0.3 in decay.values()  # noqa: PT018
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.95), 1e-7)


def test_frozen_parameters_are_left_out_and_no_group_is_empty():
    module = nn.Linear(2, 2, bias=False)
    optimizer, _ = sgd(module.named_parameters(), lr=1.0, weight_decay=0.1, momentum=0.9, warmup_ratio=0.0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]
    assert optimizer.param_groups[0]["momentum"] == 0.9
    model = bert()
    model.embeddings.requires_grad_(False)
    optimizer, _ = adamw(model.named_parameters(), lr=1.0, weight_decay=0.1, betas=[0.9, 0.99], eps=1e-8, warmup_ratio=0.0)
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert held == {id(each) for each in model.parameters() if each.requires_grad}


@pytest.mark.parametrize(("total", "ratio"), [(10, 0.2), (100, 0.1), (7, 0.0), (1, 0.1), (3, 1.0)])
def test_linear_is_that_of_transformers_without_its_first_step(total, ratio):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, max(1, round(ratio * total)), total + 1)
    for step in range(1, total + 1):
        optimizer.step()
        theirs.step()  # theirs starts at 0, where the first update would be for nothing
        assert linear(step, total, warmup_ratio=ratio) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)


def test_linear_by_hand():
    assert [linear(step, 4, warmup_ratio=0.5) for step in (1, 2, 3, 4)] == pytest.approx([1 / 2, 1, 2 / 3, 1 / 3])
    assert [linear(step, 3, warmup_ratio=0) for step in (1, 2, 3)] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [linear(step, 10, warmup_ratio=0.3) for step in (1, 2, 3, 4, 10)] == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 1 / 8])
    assert linear(1, 1, warmup_ratio=0.1) == 1
