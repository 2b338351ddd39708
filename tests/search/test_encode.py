"""Embeddings come in the order of the texts, whatever is cut, padded and shared out on the way."""

import numpy as np
import pytest
import torch
from torch import nn

from bgetrain.search import encode as module
from bgetrain.types import Chunk, Ragged, World

TEXTS = ["a" * (1 + number * 7 % 11) + chr(98 + number % 20) for number in range(50)]


class Letters(nn.Module):
    """Embeds a text as (its length, its last letter)."""

    def forward(self, seeds, ids, mask):
        assert seeds is None
        lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
        return torch.stack([lengths, ids[torch.arange(len(ids)), lengths - 1]], dim=1), None


def tokenized(texts) -> Ragged:
    return Ragged(torch.tensor([ord(letter) for text in texts for letter in text]), torch.tensor([len(text) for text in texts]))


def by_length(lengths: torch.Tensor) -> list[torch.Tensor]:
    return list(lengths.argsort(stable=True).split(3))


def padded(text: Ragged, group: torch.Tensor) -> Chunk:
    rows = [text.ids.split(text.lengths.tolist())[number] for number in group.tolist()]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < text.lengths[group][:, None]
    return Chunk(ids, None if mask.all() else mask)


@pytest.mark.parametrize("block", [4096, 7, 1])
def test_embeddings_come_in_the_order_of_the_texts(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    told: list[int] = []
    world = World(0, 1, 0, 1, torch.device("cpu"))
    found = module.encode(TEXTS, Letters(), tokenize=tokenized, cut=by_length, chunk=padded, world=world, advance=told.append)
    assert found.dtype == np.float32
    assert found.tolist() == [[len(text), ord(text[-1])] for text in TEXTS]
    assert sum(told) == len(TEXTS)


def share_of(world, size: int) -> list[list[float]]:
    return module.encode(
        TEXTS[:size], WithWidth(), tokenize=tokenized, cut=by_length, chunk=padded, world=world, advance=lambda _: None
    ).tolist()


class WithWidth(Letters):
    """With the config that says D where a rank has no text."""

    class backbone:
        class config:
            hidden_size = 2


def share_of_each(world) -> list[list[list[float]]]:
    return [share_of(world, size) for size in (50, 3, 1)]


def test_every_rank_gets_all_rows_also_with_fewer_texts_than_ranks(spawn):
    expected = [[[len(text), ord(text[-1])] for text in TEXTS[:size]] for size in (50, 3, 1)]
    assert spawn(2, share_of_each) == [expected, expected]
