"""Folders in BEIR layout."""

import gzip
import json
import re
import shutil

import pytest

from bgetrain.data.corpus import beir
from bgetrain.sources import Row

LIMITS = dict(query_max_len=32, passage_max_len=64, query_instruction="", missing_negatives="random", split="train")
CORPUS = [{"_id": "d1", "title": "T", "text": "one"}, {"_id": 2, "text": "two "}, {"_id": "d3", "title": "", "text": ""}]
QUERIES = [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "second"}]


def dumped(values: list[dict]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_bytes(dumped(CORPUS))
    (tmp_path / "queries.jsonl").write_bytes(dumped(QUERIES))
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\nq2\td3\t1\nq2\t2\t2\nq1\t2\t0\n")
    (tmp_path / "qrels" / "test.tsv").write_text("q1\td1\t2\r\nq1\t2\t0\r\n\r\nq2\td9\t1\r\n")  # no header
    return tmp_path


def opened(folder):
    return beir(str(folder), **LIMITS)


@pytest.mark.parametrize("packed", [False, True])
def test_a_split_is_read_with_and_without_header_packed_and_plain(folder, packed):
    if packed:
        for name in ("corpus.jsonl", "queries.jsonl"):
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
    found = opened(folder).retrieval("test")
    assert found.passages.names(range(3)) == ["d1", "2", "d3"]
    assert found.passages.take(range(3)) == ["T one", "two", ""]  # (title + " " + text).strip()
    assert (found.query_ids, found.queries, found.prompts) == (["q1", "q2"], ["first", "second"], [None, None])
    assert found.qrels == {"q1": {"d1": 2}, "q2": {"d9": 1}}  # relevance 0 left out; a passage that is not there counts


def test_training_rows_are_the_queries_of_train_with_their_passages_that_have_text(folder):
    rows = opened(folder).rows()
    assert len(rows) == 1
    assert rows.take([0, 0]) == [Row("second", ["T one", "two"], [], None)] * 2
    assert rows.where(0) == f"{folder}/qrels/train.tsv:2"
    assert opened(folder).texts().take([0, 1]) == ["T one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qrels/test.tsv", b"q1\td1\t1\nq1 d1 1\n", "qrels/test.tsv:2: must be query-id, corpus-id and a whole number with tabs"),
        ("qrels/test.tsv", b"q1\td1\t0.5\n", "qrels/test.tsv:1: must be query-id"),
        ("qrels/test.tsv", b"q1\t0\td1\t1\n", "qrels/test.tsv:1: must be query-id"),
        ("qrels/test.tsv", b"q1\td1\t1\nq\xff\td1\t1\n", "qrels/test.tsv:2: not UTF-8 text"),
        ("qrels/test.tsv", b"q1\td1\t0\n", "qrels/test.tsv: no relevant pair in it"),
        ("qrels/test.tsv", b"q1\td1\t1\nq7\td1\t1\n", "qrels/test.tsv:2: query 'q7' is not in queries.jsonl"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "a"}\n{"_id": "d2"}\n', "corpus.jsonl:2: 'text' must be a text"),
        ("corpus.jsonl", b'{"text": "a"}\n', "corpus.jsonl:1: has no '_id'"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "a"\n', "corpus.jsonl:1: not JSON"),
        ("corpus.jsonl", b"", "corpus.jsonl: no passages in it"),
        ("queries.jsonl", b'{"_id": "q1", "text": " "}\n', "queries.jsonl:1: 'text' of a query must be a text that is not empty"),
        ("queries.jsonl", b"", "queries.jsonl: no queries in it"),
    ],
)
def test_a_fault_is_named_with_file_and_line(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{folder}/{message}")) as error:
        opened(folder).retrieval("test")
    assert "\n" not in str(error.value)


def test_a_missing_split_names_those_that_are_there(folder):
    with pytest.raises(ValueError, match=r"qrels/dev\.tsv: no such file; the splits in .*qrels are: test, train$"):
        opened(folder).retrieval("dev")
    shutil.rmtree(folder / "qrels")
    with pytest.raises(ValueError, match=r"the splits in .* are: none$"):
        opened(folder).rows()


def test_a_train_split_without_a_known_passage_is_refused(folder):
    (folder / "qrels" / "train.tsv").write_text("q1\td9\t1\n")
    with pytest.raises(ValueError, match=r"qrels/train\.tsv: no query of it has a passage that the corpus holds$"):
        opened(folder).rows()


def test_a_missing_file_is_refused_when_it_is_needed(folder):
    (folder / "queries.jsonl").unlink()
    there = opened(folder)  # to be searched a corpus is enough
    assert there.corpus().passages.take(range(3)) == ["T one", "two", ""]
    for part in (there.rows, lambda: there.retrieval("train")):
        with pytest.raises(ValueError, match=r"has neither queries\.jsonl nor queries\.jsonl\.gz$"):
            part()
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has neither corpus\.jsonl nor corpus\.jsonl\.gz$"):
        opened(folder)
    with pytest.raises(ValueError, match=r"^data\.path=.*/nowhere: no such file or folder$"):
        opened(folder / "nowhere")


def test_training_rows_are_those_of_the_chosen_split(folder):
    with pytest.raises(ValueError, match=r"qrels/nope\.tsv: no such file"):
        beir(str(folder), **{**LIMITS, "split": "nope"}).rows()


def test_passages_that_the_corpus_lacks_are_told(folder):
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\tnone\t1\nq1\td3\t1\n")
    rows = opened(folder).rows()
    assert [list(row.positives) for row in rows.take([0])] == [["T one"]]
    assert len(rows.notes) == 1
    assert "train.tsv: 2 relevant passages left out" in rows.notes[0]
    assert "train.tsv:2: 'none'" in rows.notes[0]
