"""Labelled rows and texts: every format reads alike, every fault names its place, and the cache knows its sources."""

import gzip
import json
import multiprocessing
import os
import re

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bgetrain.data import rows
from bgetrain.sources import Row

ROWS_ALONE = dict(columns={}, labels=None, corpus=None, on_bad_row="stop", missing_negatives="random")
LIMITS = dict(query_max_len=32, passage_max_len=64, query_instruction="find: ", split="train")
ROWS = [
    {"query": "q0", "pos": ["a", "b"], "neg": ["c"], "prompt": "own: "},
    {"query": "q1", "pos": ["d"], "neg": [], "prompt": None},
    {"query": "q2", "pos": ["e"]},
]
READ = [Row("q0", ["a", "b"], ["c"], "own: "), Row("q1", ["d"], [], None), Row("q2", ["e"], [], None)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Arrow files of a test go with it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def dumped(values: list) -> str:
    return "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values)


def source(*files: object, **changes):
    return rows.jsonl([str(each) for each in files], **{**ROWS_ALONE, **LIMITS, **changes})


def hub(path: object, **changes):
    return rows.hub(str(path), **{"config": None, "revision": None, "files": None, **ROWS_ALONE, **LIMITS, **changes})


def table(*files: object, **changes):
    return source(*files, **changes).rows()


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.jsonl.gz", "r.parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(gzip.compress(dumped(ROWS).encode()) if name.endswith("gz") else dumped(ROWS).encode())
    read = table(path)
    assert len(read) == 3
    assert read.take([2, 0, 1, 0]) == [READ[2], READ[0], READ[1], READ[0]]
    assert read.where(1) == (f"{path}, row 2" if name.endswith("parquet") else f"{path}:2")


def test_rows_of_parquet_are_counted_over_the_whole_file(tmp_path):
    many = [{"query": f"q{n}", "pos": ["p"]} for n in range(2500)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(many), tmp_path / "r.parquet")
    assert table(tmp_path / "r.parquet").where(2400) == f"{tmp_path}/r.parquet, row 2401"


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "r.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"r\.parquet: cannot be read as parquet: "):
        table(tmp_path / "r.parquet")


def test_patterns_are_expanded_in_the_order_of_names(tmp_path):
    for name, row in (("b", ROWS[1]), ("a", ROWS[0]), ("c", ROWS[2])):
        (tmp_path / f"{name}.jsonl").write_text(dumped([row]))
    assert table(tmp_path / "[ab].jsonl", tmp_path / "c.jsonl").take(range(3)) == READ
    with pytest.raises(ValueError, match=r"^data\.files: .*/z\*\.jsonl matches no file$"):
        source(tmp_path / "z*.jsonl")
    with pytest.raises(ValueError, match=r"^data\.files=nowhere\.jsonl: no such file"):
        source("nowhere.jsonl")
    with pytest.raises(ValueError, match=r"^data\.files=\[\] is empty"):
        source()


def test_columns_map_other_names_and_passages_may_be_objects_with_title(tmp_path):
    row = {"q": "q", "positives": [{"docid": "1", "title": "T", "text": "x"}, {"title": None, "text": "y"}], "bad": {"text": "z"}}
    (tmp_path / "r.jsonl").write_text(dumped([row]))
    names = {"query": "q", "pos": "positives", "neg": "bad"}
    assert table(tmp_path / "r.jsonl", columns=names).take([0]) == [Row("q", ["T x", "y"], ["z"], None)]
    with pytest.raises(ValueError, match=r"^data\.columns has no key 'positives': it maps query, pos, neg, prompt"):
        table(tmp_path / "r.jsonl", columns={"positives": "pos"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q", "pos": ["a"]', "not JSON: Expecting ',' delimiter at column"),
        ({"pos": ["a"], "id": 3}, "has no 'query'; its keys are pos, id: map them with data.columns"),
        ({"query": " \n", "pos": ["a"]}, "'query' must be a text that is not empty, got ' \\n'"),
        ({"query": 3, "pos": ["a"]}, "'query' must be a text that is not empty, got 3"),
        ({"query": "q"}, "'pos' must list at least one passage, got None"),
        ({"query": "q", "pos": []}, "'pos' must list at least one passage, got []"),
        ({"query": "q", "pos": [""]}, "every passage of 'pos' must be a text that is not empty, got ''"),
        ({"query": "q", "pos": 5}, "'pos' must be a list of passages, got 5"),
        ({"query": "q", "pos": [5]}, "every passage of 'pos' must be a text that is not empty, got 5"),
        ({"query": "q", "pos": ["a"], "neg": ["b", ""]}, "every passage of 'neg' must be a text that is not empty, got ''"),
        ({"query": "q", "pos": ["a"], "neg": True}, "'neg' must be a list of passages, got True"),
        ({"query": "q", "pos": [{"title": "", "text": ""}]}, "every passage of 'pos' must be a text that is not empty"),
        ({"query": "q", "pos": ["a"], "prompt": 1}, "'prompt' must be a text, got 1"),
        (b'{"query": "\xff"}', "not UTF-8 text"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        dumped(ROWS).encode() + (line if isinstance(line, bytes) else dumped([line]).encode()) + dumped(ROWS).encode()
    )
    with pytest.raises(ValueError, match=re.escape(f"{path}:4: {message}")) as error:
        table(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"r\.jsonl: no rows in it$"):
        table(tmp_path / "r.jsonl")


def test_a_file_cut_short_is_refused_and_leaves_no_cache(tmp_path):
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress(dumped(ROWS).encode())[:-12])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"r\.jsonl\.gz:\d: not a whole gzip file"):
            table(path)


def test_sources_are_read_once_until_they_change(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    path.write_text(dumped(ROWS))
    assert table(path).take(range(3)) == READ
    with monkeypatch.context() as patched:
        patched.setattr(rows, "make", lambda *_, **__: pytest.fail("the cache was not used"))
        assert table(path).take(range(3)) == READ
    status = path.stat()
    path.write_text(dumped([ROWS[1], ROWS[0], ROWS[2]]))  # of the same size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert table(path).take(range(3)) == [READ[1], READ[0], READ[2]]
    assert table(path, columns={"neg": "prompt"}).take([1])[0].negatives == ["own: "]  # other columns, other rows


def count_rows(path: str, folder: str, barrier, found) -> None:
    datasets.config.HF_DATASETS_CACHE = folder
    barrier.wait()
    read = rows.jsonl([path], **ROWS_ALONE, **LIMITS).rows()
    found.put((len(read), read.take([1999])[0].query))


def test_two_processes_may_open_at_once(tmp_path, cache):
    path = tmp_path / "r.jsonl"
    path.write_text(dumped([{"query": f"q{n}", "pos": ["p"]} for n in range(2000)]))
    context = multiprocessing.get_context("spawn")  # of a small process: this one may hold gigabytes by now
    barrier, found = context.Barrier(2), context.Queue()
    both = [context.Process(target=count_rows, args=(str(path), str(cache), barrier, found)) for _ in range(2)]
    for each in both:
        each.start()
    assert [found.get(timeout=60) for _ in both] == [(2000, "q1999")] * 2
    for each in both:
        each.join()


def test_rows_serve_as_texts_and_as_a_retrieval_set(tmp_path):
    (tmp_path / "r.jsonl").write_text(dumped([*ROWS, {"query": "q3", "pos": ["a"], "neg": ["e"]}]))
    opened = source(tmp_path / "r.jsonl")
    assert opened.texts().take([0, 3]) == ["a", "a"]
    found = opened.retrieval("train")
    assert found.passages.take(range(5)) == ["a", "b", "c", "d", "e"]
    assert found.prompts == ["own: ", None, None, None]
    named = dict(zip(found.passages.names(range(5)), found.passages.take(range(5)), strict=True))
    assert [{named[each] for each in found.qrels[query]} for query in found.query_ids] == [{"a", "b"}, {"d"}, {"e"}, {"a"}]


def test_texts_are_read_by_column_and_an_empty_one_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text(dumped([{"body": "one"}, {"body": "two"}]))
    opened = rows.text([str(tmp_path / "t.jsonl")], columns={"text": "body"}, on_bad_row="stop", **LIMITS)
    assert opened.rows is None
    assert opened.texts().take([1, 0]) == ["two", "one"]
    with pytest.raises(ValueError, match=r"t\.jsonl:1: 'text' must be a text that is not empty, got None"):
        rows.text([str(tmp_path / "t.jsonl")], columns={}, on_bad_row="stop", **LIMITS).texts()


@pytest.mark.parametrize("layout", ["data/train-00000-of-00001.parquet", "train.jsonl.gz", "20.en/train-00000-of-00001.parquet"])
def test_a_local_copy_of_a_hub_set_is_read_in_its_usual_layouts(tmp_path, layout):
    file = tmp_path / "copy" / layout
    file.parent.mkdir(parents=True)
    content = [{"id": "1", "title": "T", "text": "one"}, {"id": "2", "title": "U", "text": "two"}]
    if layout.endswith("gz"):
        file.write_bytes(gzip.compress(dumped(content).encode()))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)
    if layout.startswith("20.en"):  # another configuration beside it
        (tmp_path / "copy/20.de").mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "drei"}]), tmp_path / "copy/20.de/train.parquet")
    opened = hub(tmp_path / "copy", config="20.en", columns={"text": "text"})
    texts = opened.texts()
    assert texts.take(range(len(texts))) == ["one", "two"]
    assert str(file) in opened.files


def test_a_folder_without_data_is_refused_in_one_line(tmp_path):
    (tmp_path / "copy").mkdir()
    with pytest.raises(ValueError, match=r"^data\.path=.*/copy: this folder cannot be read as a data set: ") as error:
        hub(tmp_path / "copy", columns={"query": "query"}).rows()
    assert "\n" not in str(error.value)


def test_a_teacher_s_scores_are_read_and_held_against_the_passages(tmp_path):
    path = tmp_path / "r.jsonl"
    scored = {"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [1], "teacher": [0.5, -2.5]}
    path.write_text(dumped([scored, {"query": "q", "pos": ["a"]}]), "utf8")
    first, second = table(path, columns={"neg_scores": "teacher"}).take([0, 1])
    assert (first.positive_scores, first.negative_scores) == ([1.0], [0.5, -2.5])
    assert (second.positive_scores, second.negative_scores) == (None, None)
    for value, words in (
        ([0.5], r":1: 'neg_scores' has 1 scores for the 2 passages of 'neg': give one for each$"),
        (["high", 1], r":1: 'neg_scores' must be a list of numbers, got \['high', 1\]$"),
        ([float("nan"), 1], r":1: 'neg_scores' must hold finite numbers, got \[nan, 1\]$"),
    ):
        path.write_text(dumped([{**scored, "neg_scores": value}]), "utf8")
        with pytest.raises(ValueError, match=words):
            table(path)


def test_a_column_that_no_row_has_is_told(tmp_path):
    (tmp_path / "r.jsonl").write_text(dumped([{"query": "q", "pos": ["p"], "hard": ["n"]}] * 3))
    notes = source(tmp_path / "r.jsonl", columns={"neg": "hrad", "prompt": "none"}).rows().notes
    assert [note.partition(", which none of the first 3 rows of ")[0] for note in notes] == ["data.columns: neg is 'hrad'"]
    assert source(tmp_path / "r.jsonl", columns={"neg": "hard"}).rows().notes == []
