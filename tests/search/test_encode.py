"""Embeddings come in the order of the texts, whatever is cut, padded and shared out on the way, and are kept."""

import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bgetrain.search import shards
from bgetrain.search.encode import Encoder, embed, encode, fingerprint_of_model
from bgetrain.types import Chunk, Ragged, World

TEXTS = ["a" * (1 + number * 7 % 11) + chr(98 + number % 20) for number in range(50)]
EXPECTED = [[len(text), ord(text[-1])] for text in TEXTS]
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


class Letters(nn.Module):
    """Embeds a text as (its length, its last letter); counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=2))
        self.calls = 0

    def forward(self, seeds, ids, mask):
        assert seeds is None
        self.calls += 1
        lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
        return torch.stack([lengths, ids[torch.arange(len(ids)), lengths - 1]], dim=1).float(), None


def tokenized(texts) -> Ragged:
    return Ragged(torch.tensor([ord(letter) for text in texts for letter in text]), torch.tensor([len(text) for text in texts]))


def by_length(lengths: torch.Tensor) -> list[torch.Tensor]:
    return list(lengths.argsort(stable=True).split(3))


def padded(text: Ragged, group: torch.Tensor) -> Chunk:
    rows = [text.ids.split(text.lengths.tolist())[number] for number in group.tolist()]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < text.lengths[group][:, None]
    return Chunk(ids, None if mask.all() else mask)


def encoder() -> Encoder:
    return Encoder(Letters(), None, by_length, padded, torch.device("cpu"))


def encoded(texts, folder, world=ALONE, used=None, told=lambda _: None):
    return encode(
        used or encoder(), lambda part: texts[part.start : part.stop], len(texts), tokenize=tokenized, folder=Path(folder),
        world=world, advance=told,
    )  # fmt: skip


def calls(texts, folder) -> int:
    used = encoder()
    assert encoded(texts, folder, used=used).take(range(len(texts))).tolist() == [[len(text), ord(text[-1])] for text in texts]
    return used.module.calls


@pytest.mark.parametrize("block", [4096, 7, 1])
def test_embeddings_come_in_the_order_of_the_texts(monkeypatch, tmp_path, block):
    monkeypatch.setattr(shards, "BLOCK", block)
    told: list[int] = []
    found = encoded(TEXTS, tmp_path, told=told.append)
    assert (found.total, found.width, found.part) == (50, 2, range(50))
    rows = found.take(range(50))
    assert rows.dtype == np.float32
    assert rows.tolist() == EXPECTED
    assert found.take([49, 0, 7, 49]).tolist() == [EXPECTED[49], EXPECTED[0], EXPECTED[7], EXPECTED[49]]
    assert sum(told) == len(TEXTS)
    told.clear()
    encoded(TEXTS, tmp_path, told=told.append)
    assert sum(told) == len(TEXTS)  # also where all is found


def test_texts_on_the_device_are_embedded_in_their_order():
    assert embed(encoder(), tokenized(TEXTS)).tolist() == EXPECTED


def test_a_second_run_embeds_what_has_changed_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "BLOCK", 10)  # 4 forward passes each
    assert calls(TEXTS, tmp_path) == 20
    assert calls(TEXTS, tmp_path) == 0
    assert calls([*TEXTS[:25], "other", *TEXTS[26:]], tmp_path) == 4
    assert calls(TEXTS[20:], tmp_path) == 0  # whole blocks, elsewhere in the corpus
    assert calls(TEXTS[:45], tmp_path) == 2  # the last block is shorter
    assert calls(["ab", "c"], tmp_path) == calls(["a", "bc"], tmp_path) == 1  # where a text ends counts


@pytest.mark.parametrize("damage", ["cut", "cut to nothing", "changed", "longer", "another shape", "no array"])
def test_a_damaged_file_is_known_and_made_again(monkeypatch, tmp_path, damage):
    monkeypatch.setattr(shards, "BLOCK", 10)
    assert calls(TEXTS, tmp_path) == 20
    path = sorted(tmp_path.glob("*.npy"))[1]
    content = path.read_bytes()
    middle = len(content) - 40
    if damage == "another shape":
        shards.save(path, np.zeros((10, 3), np.float32))
    else:
        path.write_bytes({
            "cut": content[:-30], "cut to nothing": b"", "longer": content + b"x", "no array": b"x" * len(content),
            "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }[damage])  # fmt: skip
    assert calls(TEXTS, tmp_path) == 4
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir() if each.suffix != ".npy"] == []


def test_a_run_that_was_interrupted_keeps_its_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "BLOCK", 10)
    used, forward = encoder(), Letters.forward

    def stop(self, *arguments):
        if self.calls == 9:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(Letters, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        encoded(TEXTS, tmp_path, used=used)
    monkeypatch.setattr(Letters, "forward", forward)
    assert calls(TEXTS, tmp_path) == 12


def test_an_embedding_that_is_not_finite_is_refused_with_its_text(monkeypatch, tmp_path):
    monkeypatch.setattr(Letters, "forward", lambda self, seeds, ids, mask: (torch.full((len(ids), 2), torch.nan), None))
    with pytest.raises(ValueError, match=re.escape(f"50 of 50 embeddings are not finite, the first that of {TEXTS[0]!r}")):
        encoded(TEXTS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_memory_holds_no_block_but_the_one_in_use(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "BLOCK", 5)
    taken: list[range] = []

    def take(part: range) -> list[str]:
        taken.append(part)
        return TEXTS[part.start : part.stop]

    encode(encoder(), take, 50, tokenize=tokenized, folder=tmp_path, world=ALONE, advance=lambda _: None)
    assert taken == [range(start, start + 5) for start in range(0, 50, 5)]


def test_the_model_s_fingerprint_is_of_weights_precision_and_facts():
    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Linear(3, 2)

    plain = fingerprint_of_model(model(1), {"a": 1})
    assert plain == fingerprint_of_model(model(1), {"a": 1})
    others = [(model(2), {"a": 1}), (model(1).bfloat16(), {"a": 1}), (model(1), {"a": 2})]
    assert len({plain, *(fingerprint_of_model(*each) for each in others)}) == 4


def share_of_each(world, folder: str) -> dict:
    shards.BLOCK = 4
    result = {}
    for size in (50, 3, 1):
        used = encoder()
        found = encoded(TEXTS[:size], f"{folder}/{size}", world, used)
        rows = shards.spread(found, range(size // 3, size), world)
        result[size] = (found.part, found.take(found.part).tolist(), rows.tolist(), used.module.calls)
    return result


def test_ranks_embed_whole_blocks_send_rows_around_and_find_those_of_another_number_of_ranks(spawn, tmp_path):
    for world_size in (2, 4):
        results = spawn(world_size, share_of_each, str(tmp_path))
        for size in (50, 3, 1):
            parts = [result[size][0] for result in results]
            assert [number for part in parts for number in part] == list(range(size))
            assert all(part.start % 4 == 0 or not len(part) for part in parts)
            for part, rows, spread, calls in (result[size] for result in results):
                assert rows == EXPECTED[part.start : part.stop]
                assert spread == EXPECTED[size // 3 : size]
                assert (calls > 0) == (world_size == 2 and len(part) > 0)
        assert len(list((tmp_path / "50").iterdir())) == 13
