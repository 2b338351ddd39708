"""What was left out of the data is said by every stage that reads it, each time; and no instruction stays none."""

import json
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bgetrain.data import rows
from bgetrain.stage import build, embed

MORE = dict(
    columns={}, labels=None, corpus=None, on_bad_row="skip", missing_negatives="random",
    query_max_len=8, passage_max_len=8, query_instruction="", split="train",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_rank_0_says_what_was_left_out_at_each_opening(tmp_path, capfd):
    path = tmp_path / "r.jsonl"
    path.write_text('{"query": "q", "pos": ["p"]}\n{"query": "q"}\n')
    for rank in (0, 0, 1):
        source = rows.jsonl([str(path)], **MORE)
        for opened in (source.rows(), source.texts(), source.retrieval("train")):
            build.tell(opened, SimpleNamespace(rank=rank))
            told = capfd.readouterr().err.replace("\n", " ")
            assert ("left out 1 bad rows of 2 (1 no_positive)" in told) == (rank == 0)
    build.tell([], SimpleNamespace(rank=0))  # what is not read from files
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_query_without_instruction_is_itself(tmp_path, suffix):
    """FlagEmbedding 1.4 puts the word "None" before it (AbsDataset.py:460)."""
    values = [{"query": "q0", "pos": ["p"], "prompt": None}, {"query": "q1", "pos": ["p"], "prompt": ""}]
    for name, each in (("a", values), ("b", [{"query": "q2", "pos": ["p"]}])):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(value) + "\n" for value in each))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(each), path)
    source = rows.jsonl([f"{tmp_path}/*{suffix}"], **MORE)
    assert [row.prompt for row in source.rows().take(range(3))] == [None, "", None]
    assert embed.instructed(source.retrieval("train"), source.query_instruction) == ["q0", "q1", "q2"]
