"""Spans on disk: the same for any number of workers, whole or not there, and read in any order."""

import pickle

import numpy as np
import pytest
import torch
from documents import TEXTS, Deadly, Listed, made, taken, trained, whole

from bgetrain.data import spans as module
from bgetrain.data.spans import IDS, META, OFFSETS
from bgetrain.data.texts import Truncated
from bgetrain.data.tokenize import tokenize_words


@pytest.fixture(scope="module")
def tokenizers():
    return trained(TEXTS)


def test_spans_are_the_same_for_any_number_of_workers(tokenizers, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH", 1)
    for num_workers in (0, 1, 2, 3):
        counts: list[int] = []
        folder = tmp_path / str(num_workers)
        made(TEXTS, tokenizers["byte level"], 30, folder, across=True, num_workers=num_workers, advance=counts.append)
        assert sum(counts) == len(TEXTS)
    for name in (IDS, OFFSETS):
        assert len({(tmp_path / str(number) / name).read_bytes() for number in range(4)}) == 1


def test_spans_and_facts_do_not_depend_on_where_the_stream_breaks(tokenizers, tmp_path, monkeypatch):
    for across in (False, True):
        folders = []
        for joined in (1 << 22, 7, 50):  # tokens: a document and a span go over many breaks
            monkeypatch.setattr(module, "JOINED", joined)
            folders.append(tmp_path / f"{across} {joined}")
            made(TEXTS, tokenizers["byte level"], 30, folders[-1], across=across)
        for name in (IDS, OFFSETS, META):
            assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_a_killed_preparation_leaves_no_spans_and_the_next_goes_on_where_it_was(tokenizers, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH", 1)
    tokenizer = tokenizers["wordpiece"]
    folder = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="a worker ended with status -9"):
        made(Deadly(TEXTS), tokenizer, 30, folder, num_workers=2)
    assert not folder.exists()
    asked: list[int] = []

    class Watched(Listed):
        def take(self, indices):
            asked.extend(indices)
            return super().take(indices)

    counts: list[int] = []
    made(Watched(TEXTS), tokenizer, 30, folder, advance=counts.append)
    assert 90 in asked
    assert len(asked) <= len(TEXTS) - 45  # of the even ones, those before 90 were there
    assert sum(counts) == len(TEXTS)
    made(TEXTS, tokenizer, 30, tmp_path / "whole")
    for name in (IDS, OFFSETS):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["killed", "whole"]
    made(Deadly(TEXTS), tokenizer, 30, folder)  # it is there: no text is read


def test_a_preparation_that_ends_while_it_cuts_leaves_no_spans(tokenizers, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(module.shutil, "rmtree", full)
    monkeypatch.setattr(module, "spans_of", full)
    with pytest.raises(OSError, match="no space"):
        made(TEXTS, tokenizers["wordpiece"], 30, tmp_path / "spans")
    assert not (tmp_path / "spans").exists()
    monkeypatch.undo()
    assert len(made(TEXTS, tokenizers["wordpiece"], 30, tmp_path / "spans"))


def test_spans_are_taken_in_any_order_by_copies_in_other_processes(tokenizers, tmp_path):
    found = made(TEXTS, tokenizers["trimmed"], 30, tmp_path / "spans")
    all_of_them = taken(found)
    copy = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 2000  # the maps are opened again
    for chosen in ([5], [9, 2, 2, 7], list(range(len(found)))[::-1]):
        for each in (found, copy):
            text, words = each.take(chosen)
            assert text.ids.tolist() == [token for number in chosen for token in all_of_them[number][0]]
            assert words.tolist() == [word for number in chosen for word in all_of_them[number][1]]
            assert text.ids.dtype == text.lengths.dtype == words.dtype == torch.int64
    for wrong in (-1, len(found)):
        with pytest.raises(IndexError, match=f"span {wrong} of {len(found)}"):
            found.take([0, wrong])


def test_facts_say_what_truncation_would_have_lost(tokenizers, tmp_path):
    lengths = np.array([len(whole(tokenizers["wordpiece"], text)) for text in TEXTS])
    found = made(TEXTS, tokenizers["wordpiece"], 30, tmp_path / "spans")
    lost = np.maximum(lengths - 28, 0).sum() / lengths.sum()
    assert f"{lengths.sum():,} tokens, in {len(found):,} spans of at most 30" in found.facts["documents"]
    long = found.facts["documents that exceed one span"]
    assert long == f"{(lengths > 28).sum():,}; truncation would lose {lost:.1%} of all tokens"
    assert found.facts["documents without a token"] == f"{(lengths == 0).sum():,}, left out"


def test_truncate_prepares_nothing(tokenizers, tmp_path):
    found = made(TEXTS, tokenizers["wordpiece"], 30, tmp_path / "spans", cut="truncate")
    assert isinstance(found, Truncated)
    assert list(tmp_path.iterdir()) == []
    ours, theirs = found.take([3, 1]), tokenize_words(tokenizers["wordpiece"], [TEXTS[3], TEXTS[1]], 30)
    assert torch.equal(ours[0].ids, theirs[0].ids)


def test_words_of_a_document_that_fits_are_those_of_the_tokenizer(tokenizers, tmp_path):
    texts = Listed(text for text in ("the quick fox. over lazy dogs, brown", "the [SEP] dogs", "a </s> b, c"))
    for name in ("wordpiece", "trimmed"):
        text, words = made(texts, tokenizers[name], 64, tmp_path / name).take(range(3))
        expected, expected_words = tokenize_words(tokenizers[name], texts, 64)
        assert torch.equal(text.ids, expected.ids)
        assert torch.equal(text.lengths, expected.lengths)
        assert torch.equal(words, expected_words)


def test_what_cannot_be_done_is_refused_in_one_line(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    with pytest.raises(ValueError, match="across=true needs cut=sentences or cut=tokens"):
        made(TEXTS, tokenizer, 30, tmp_path / "spans", cut="truncate", across=True)
    with pytest.raises(ValueError, match=r"max_len=2 has no room .* 2 special tokens: use 3 or more"):
        made(TEXTS, tokenizer, 2, tmp_path / "spans")
    with pytest.raises(ValueError, match="none of the 2 documents has a token"):
        made(Listed(["", " "]), tokenizer, 30, tmp_path / "empty")
    bare = pickle.loads(pickle.dumps(tokenizer))
    bare.sep_token = None
    with pytest.raises(ValueError, match="neither sep_token nor eos_token"):
        made(TEXTS, bare, 30, tmp_path / "spans", across=True)
    assert not (tmp_path / "spans").exists()
