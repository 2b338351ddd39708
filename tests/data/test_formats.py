"""Every format and every compression gives the same rows and names the same places."""

import bz2
import gzip
import json
import lzma
import re
from functools import partial
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bgetrain.data import pieces, rows
from bgetrain.data.hubs import reached
from bgetrain.sources import Fault, Row

MORE = dict(
    columns={}, labels=None, corpus=None, on_bad_row="stop", missing_negatives="random",
    query_max_len=8, passage_max_len=8, query_instruction="", split="train",
)  # fmt: skip
ROWS = [{"query": f"q{n} é", "pos": [f"p{n}", "x"], "neg": [f"n{n}"] if n % 2 else []} for n in range(40)]
READ = [Row(row["query"], row["pos"], row["neg"], None) for row in ROWS]
BAD = {"query": " ", "pos": ["p"]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("bgetrain.data.make.MOST_PROCESSES", 1)


def dumped(values: list) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def streamed(codec: str, content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {
    ".jsonl": bytes, ".json": bytes, ".jsonl.gz": gzip.compress, ".jsonl.bz2": bz2.compress, ".jsonl.xz": lzma.compress,
    ".jsonl.zst": partial(streamed, "zstd"), ".jsonl.lz4": partial(streamed, "lz4"),
}  # fmt: skip


def table_file(path, values: list) -> None:
    table = pyarrow.Table.from_pylist(values)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=7)
    else:
        opener = pyarrow.ipc.new_stream if "stream" in path.name else pyarrow.ipc.new_file
        with opener(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=7)


def source(*files, **changes):
    return rows.jsonl([str(each) for each in files], **{**MORE, **changes})


def opened(*files, **changes):
    return source(*files, **changes).rows()


@pytest.mark.parametrize("suffix", PACKED)
def test_every_compression_gives_the_same_rows_and_names_file_and_line(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    path.write_bytes(PACKED[suffix](dumped(ROWS)))
    read = opened(path)
    assert read.take(range(40)) == READ
    assert read.where(17) == f"{path}:18"
    path.write_bytes(PACKED[suffix](dumped([*ROWS[:20], BAD, *ROWS[20:]])))
    with pytest.raises(ValueError, match=re.escape(f"{path}:21: 'query' must be a text that is not empty, got ' '")):
        opened(path)


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKED if suffix.count(".") > 1])
def test_what_is_cut_short_is_named_by_the_line_at_which_it_ends(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    many = dumped([{"query": f"{hash(str(n))} {n}", "pos": [f"{hash(str(-n))}"]} for n in range(12_000)])
    whole = PACKED[suffix](many)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    found = list(source(path).scan(0, 1))
    assert isinstance(found[-1], Fault)
    assert not any(isinstance(each, Fault) for each in found[:-1])
    assert found[-1].where == f"{path}:{len(found)}"
    assert found[-1].kind == "unreadable"
    for on_bad_row in ("stop", "skip"):  # the rest of a file is more than a bad row
        with pytest.raises(ValueError, match=re.escape(f"{path}:{len(found)}: not a whole ")) as error:
            opened(path, on_bad_row=on_bad_row)
        assert str(error.value) == found[-1].message
    path.write_bytes(dumped(ROWS))
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: not a whole ")):
        opened(path)


@pytest.mark.parametrize("name", ["r.parquet", "r.arrow", "stream.arrow"])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 30])
def test_tables_give_the_same_rows_and_name_them_by_number(tmp_path, monkeypatch, name, piece_bytes):
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    path = tmp_path / name
    table_file(path, ROWS)
    assert (len(pieces.pieces_of(str(path))) > 1) == (piece_bytes == 1)
    read = opened(path)
    assert read.take(range(40)) == READ
    assert read.where(30) == f"{path}, row 31"
    table_file(path, [*ROWS[:30], BAD])
    with pytest.raises(ValueError, match=re.escape(f"{path}, row 31: 'query' must be")):
        opened(path)


@pytest.mark.parametrize("name", ["r.parquet", "r.arrow"])
def test_what_is_no_table_is_named(tmp_path, name):
    (tmp_path / name).write_text("no")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: cannot be read as ")) as error:
        opened(tmp_path / name)
    assert "\n" not in str(error.value)


def test_all_columns_are_named_where_the_query_s_is_missing(tmp_path):
    table_file(tmp_path / "r.parquet", [{"question": "q", "answer": "a", "id": 1}])
    with pytest.raises(ValueError, match=r"row 1: has no 'query'; its keys are question, answer, id: map them"):
        opened(tmp_path / "r.parquet")


def test_a_folder_that_datasets_saved_is_read_with_and_without_splits(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    made.select(range(39, -1, -1)).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"dev": made.select([3]), "train": made}).save_to_disk(str(tmp_path / "several"))
    assert opened(tmp_path / "one").take(range(40)) == READ[::-1]
    assert opened(tmp_path / "several").take(range(40)) == READ
    assert opened(tmp_path / "several", split="dev").take([0]) == [READ[3]]
    hub = rows.hub(str(tmp_path / "several"), **{**MORE, "config": None, "revision": None, "files": None, "split": "dev"})
    assert hub.rows().take([0]) == [READ[3]]
    with pytest.raises(ValueError, match=r"^data\.split=test: .*several has dev, train$"):
        opened(tmp_path / "several", split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^data\.files: .*empty is a folder: name its files"):
        opened(tmp_path / "empty")


def test_files_of_differing_columns_are_read_together(tmp_path):
    """An all-empty neg beside a filled one, and columns that other files lack: schemas that cannot be concatenated."""
    plain = [{"query": "a", "pos": ["b"], "neg": []}]
    rich = [{"query": "c", "pos": ["d"], "neg": ["e"], "prompt": "find: ", "type": "normal", "pos_scores": [0.5]}]
    for suffix in (".jsonl", ".parquet"):
        for name, values in (("1", plain), ("2", rich), ("3", plain)):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(dumped(values)) if suffix == ".jsonl" else table_file(path, values)
        found = opened(tmp_path / f"*{suffix}").take(range(3))
        assert found == [Row("a", ["b"], [], None), Row("c", ["d"], ["e"], "find: ", [0.5], None), Row("a", ["b"], [], None)]


def test_files_of_a_set_are_chosen_by_pattern_and_lines_that_are_lists_are_read(tmp_path):
    """The layout of sentence-transformers/embedding-training-data, which `datasets` itself cannot read."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "gooaq_pairs.jsonl.gz").write_bytes(gzip.compress(dumped([["q", "a"], ["r", "b"]])))
    (folder / "AllNLI.jsonl.gz").write_bytes(gzip.compress(dumped([["q", "a", "n"]])))
    more = {**MORE, "config": None, "revision": None, "columns": {"query": 0, "pos": 1, "neg": 2}}
    pairs = rows.hub(str(folder), files="gooaq_pairs.jsonl.gz", **more)
    assert pairs.rows().take([0, 1]) == [Row("q", ["a"], [], None), Row("r", ["b"], [], None)]
    assert pairs.rows().where(1) == f"{folder}/gooaq_pairs.jsonl.gz:2"
    assert rows.hub(str(folder), files="AllNLI*", **more).rows().take([0]) == [Row("q", ["a"], ["n"], None)]
    with pytest.raises(ValueError, match=r"^data\.path=.*set: this folder cannot be read as a data set: "):
        rows.hub(str(folder), files="no*.jsonl", **more).rows()


def test_a_hub_set_is_downloaded_and_read_as_it_is_where_its_files_are_of_our_formats(tmp_path, monkeypatch):
    local = tmp_path / "blob" / "pairs.jsonl.gz"
    local.parent.mkdir()
    local.write_bytes(gzip.compress(dumped([{"set": ["q", "a"]}])))

    made = SimpleNamespace(config=SimpleNamespace(data_files={"train": ["hf://datasets/a/b@1/pairs.jsonl.gz"]}))
    asked = []

    def builder(path, config, **given):
        asked.append((path, config, given))
        return made

    monkeypatch.setattr("bgetrain.hub.settle", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda self, urls: [str(local)] if "a/b@1" in urls[0] else [])
    origin = {"path": "a/b", "config": "c", "revision": "v2", "split": "train", "files": None, "columns": []}
    assert reached(origin) == [str(local)]
    assert asked == [("a/b", "c", {"revision": "v2"})]
    opened_set = rows.hub(
        "a/b", **{**MORE, "config": "c", "revision": None, "files": None, "columns": {"query": "set.0", "pos": "set.1"}}
    )
    assert opened_set.rows().take([0]) == [Row("q", ["a"], [], None)]
    assert opened_set.rows().where(0) == f"{local}:1"


def test_a_format_of_datasets_alone_is_read_through_it(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("query,pos,other\nq0,p0,1\n,p1,2\nq2,p2,3\n")
    hub = rows.hub(str(tmp_path / "set"), **{**MORE, "config": None, "revision": None, "files": None, "on_bad_row": "skip"})
    read = hub.rows()
    assert read.take(range(2)) == [Row("q0", ["p0"], [], None), Row("q2", ["p2"], [], None)]
    assert read.where(1) == f"{tmp_path}/set, row 3"
    assert read.notes[1].startswith("  left out 1 bad rows of 3 (1 no_query)")
    (tmp_path / "set" / "train.csv").write_bytes(b"query,pos\nq0,p0\n\xff,p1,2,3\n")
    with pytest.raises(ValueError, match=r"^data\.path=.*set: this folder cannot be read as a data set: ") as error:
        rows.hub(str(tmp_path / "set"), **{**MORE, "config": None, "revision": None, "files": None}).rows()
    assert "\n" not in str(error.value)


CORPUS = [{"docid": "7", "title": "T", "text": "seven"}, {"docid": "8", "title": "", "text": "eight"}, {"docid": "9", "text": ""}]


@pytest.mark.parametrize("layout", ["jsonl", "parquet", "beir"])
def test_passages_named_by_id_are_taken_from_a_corpus(tmp_path, layout):
    path = tmp_path / f"corpus.{layout}"
    if layout == "beir":
        path.mkdir()
        beir = [{"_id": row["docid"], **row} for row in CORPUS]
        (path / "corpus.jsonl.gz").write_bytes(gzip.compress(dumped(beir)))
        (path / "queries.jsonl").write_bytes(dumped([{"_id": "q", "text": "no passage"}]))
    elif layout == "parquet":
        table_file(path, CORPUS)
    else:
        path.write_bytes(dumped(CORPUS))
    values = [
        {"query": "a", "pos": ["7", 8], "neg": []},
        {"query": "b", "pos": [{"docid": "8"}], "neg": [{"docid": "7", "score": 1.0}]},
        {"query": "c", "pos": ["5"]},
        {"query": "d", "pos": ["8"], "neg": ["9"]},
        {"query": "e", "pos": [1.5]},
    ]
    (tmp_path / "r.jsonl").write_bytes(dumped(values))
    skipping = opened(tmp_path / "r.jsonl", corpus=str(path), on_bad_row="skip")
    assert skipping.take(range(2)) == [Row("a", ["T seven", "eight"], [], None), Row("b", ["eight"], ["T seven"], None)]
    assert len(skipping) == 2
    faults = [each for each in source(tmp_path / "r.jsonl", corpus=str(path)).scan(0, 1) if isinstance(each, Fault)]
    assert [(each.where, each.kind) for each in faults] == [
        (f"{tmp_path}/r.jsonl:3", "unknown_passage"),
        (f"{tmp_path}/r.jsonl:4", "empty_negative"),
        (f"{tmp_path}/r.jsonl:5", "bad_passage"),
    ]
    assert faults[0].message == f"{tmp_path}/r.jsonl:3: data.corpus={path} has no passage '5'"
    with pytest.raises(ValueError, match=re.escape(faults[0].message)):
        opened(tmp_path / "r.jsonl", corpus=str(path))
    with pytest.raises(ValueError, match=r"^data\.corpus=nowhere: no such file"):
        source(tmp_path / "r.jsonl", corpus="nowhere")
