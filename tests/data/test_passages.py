"""Corpora on disk: places and names against a dictionary in memory."""

import gzip
import json
import os
import re
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bgetrain.data import passages as module
from bgetrain.data.corpus import beir
from bgetrain.data.passages import open_passages
from bgetrain.data.rows import jsonl

LIMITS = dict(query_max_len=32, passage_max_len=64, query_instruction="", missing_negatives="random", split="train")
VALUES = [{"docid": str(n), "title": f"t{n}" if n % 2 else "", "text": f"text of {n}"} for n in range(50)]
TEXTS = [f"t{n} text of {n}" if n % 2 else f"text of {n}" for n in range(50)]


def dumped(values: list[dict]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def written(folder, kind: str) -> str:
    path = folder / f"corpus{kind}"
    if kind == "/":
        path.mkdir()
        (path / "a.jsonl").write_bytes(dumped(VALUES[:20]))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(VALUES[20:]), path / "b.parquet")
    elif kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(VALUES), path)
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(dumped(VALUES)))
    else:
        path.write_bytes(dumped([{"_id": n, "title": value["title"], "text": value["text"]} for n, value in enumerate(VALUES)]))
    return str(path)


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".parquet", "/"])
def test_a_corpus_of_each_kind_is_read_by_place_and_by_name(tmp_path, kind):
    found = open_passages(written(tmp_path, kind))
    assert len(found) == 50
    assert found.take(range(50)) == TEXTS
    assert found.take(range(7, 12)) == TEXTS[7:12]
    assert found.take([41, 0, 41]) == [TEXTS[41], TEXTS[0], TEXTS[41]]
    assert found.take(np.array([3, 2])) == [TEXTS[3], TEXTS[2]]
    assert found.take([]) == []
    assert found.names([49, 3]) == ["49", "3"]
    assert found.find(["49", "none", "0", "49"]).tolist() == [49, -1, 0, 49]
    assert found.find([]).tolist() == []


def test_names_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "hashes", lambda names: np.array([len(name) for name in names], np.uint64))
    found = open_passages(written(tmp_path, ".jsonl"))
    names = [str(n) for n in range(99, -3, -1)]
    assert found.find(names).tolist() == [int(name) if 0 <= int(name) < 50 else -1 for name in names]


@pytest.mark.parametrize("collide", [False, True])
def test_a_name_that_stands_twice_is_refused_with_both_places(tmp_path, monkeypatch, collide):
    if collide:
        monkeypatch.setattr(module, "hashes", lambda names: np.array([len(name) for name in names], np.uint64))
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(
        dumped([{"_id": "a", "text": "1"}, {"_id": "b", "text": "2"}, {"_id": "c", "text": "3"}, {"_id": "b", "text": "2"}])
    )
    for _ in range(2):  # the Arrow file is there the second time
        with pytest.raises(ValueError, match=re.escape(f"{path}:4: '_id' 'b' is that of {path}:2 too: give each passage")):
            open_passages(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"docid": "1", "title": "a"}\n', "corpus.jsonl:1: 'text' must be a text"),
        (b'{"docid": "1", "text": "a"}\n{"text": "a"}\n', "corpus.jsonl:2: has no '_id'"),
        (b"", "corpus.jsonl: no passages in it"),
    ],
)
def test_a_fault_is_named_with_file_and_line(tmp_path, content, message):
    (tmp_path / "corpus.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_passages(str(tmp_path / "corpus.jsonl"))


def test_what_is_no_corpus_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.jsonl"):
        with pytest.raises(ValueError, match=re.escape(f"{path}: must be a corpus file (.parquet, .json, .jsonl, .jsonl.gz,")):
            open_passages(str(path))


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path, monkeypatch):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(dumped([{"_id": "a", "text": "1"}]))
    assert open_passages(str(path)).find(["b"]).tolist() == [-1]
    path.write_bytes(dumped([{"_id": "a", "text": "1"}, {"_id": "b", "text": "2"}]))
    assert open_passages(str(path)).find(["b"]).tolist() == [1]
    stamp = path.stat()
    path.write_bytes(b"x" * stamp.st_size)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    monkeypatch.setattr(module.ArrowPassages, "make_index", None)
    assert open_passages(str(path)).take([1]) == ["2"]


def test_memory_holds_neither_texts_nor_names(tmp_path):
    """4,000 passages of 5,000 bytes, 20 MB: reading some of them takes less than a hundredth."""
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(dumped([{"_id": f"{n}", "text": f"{n} " * 1000} for n in range(4000)]))
    (tmp_path / "queries.jsonl").write_bytes(dumped([{"_id": "q", "text": "first"}]))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/train.tsv").write_text("q\t3999\t1\n")
    source = beir(str(tmp_path), **LIMITS)
    source.rows(), source.texts()  # the caches are filled
    tracemalloc.start()
    try:
        rows, texts, found = source.rows(), source.texts(), source.retrieval("train").passages
        assert rows.take([0])[0].positives == [texts.take([3999])[0]] == found.take(found.find(["3999"]))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000
    assert isinstance(found.index, np.memmap)


def test_rows_become_a_corpus_of_distinct_texts_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)
    draw = np.random.default_rng(1)
    rows = [
        {"query": f"q{n}", "pos": [f"x{k}" for k in draw.integers(0, 40, draw.integers(1, 4))],
         "neg": [f"x{k}" for k in draw.integers(0, 40, draw.integers(0, 5))], "prompt": "p" if n == 3 else None}
        for n in range(30)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_bytes(dumped(rows))
    expected: dict[str, int] = {}
    for row in rows:
        for text in [*row["pos"], *row["neg"]]:
            expected.setdefault(text, len(expected))
    for _ in range(2):  # made, then read
        found = jsonl(
            [str(tmp_path / "rows.jsonl")], columns={}, labels=None, corpus=None, on_bad_row="stop", **LIMITS
        ).retrieval("train")
        assert found.passages.take(range(len(found.passages))) == list(expected)
        assert found.passages.names(range(len(expected))) == [f"p{n}" for n in range(len(expected))]
        assert found.passages.find([f"p{n}" for n in range(41)]).tolist() == [
            *range(len(expected)), *[-1] * (41 - len(expected))
        ]  # fmt: skip
        assert (found.query_ids, found.queries) == ([f"q{n}" for n in range(30)], [f"q{n}" for n in range(30)])
        assert found.prompts == [row["prompt"] for row in rows]
        assert found.qrels == {f"q{n}": {f"p{expected[text]}": 1 for text in row["pos"]} for n, row in enumerate(rows)}
