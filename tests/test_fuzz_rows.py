"""Files of any bytes, values and near-valid rows: the reader gives rows or one line for each fault, with FILE:LINE.

`FUZZ=5000 pytest tests/test_fuzz_rows.py` draws more of them.
"""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz_config import at_most

from bgetrain.data.make import scan
from bgetrain.data.records import Reading
from bgetrain.data.rows import jsonl
from bgetrain.sources import Fault, Found, Row

NAMES = ["query", "pos", "neg", "prompt", "pos_scores", "neg_scores", "Query", "text", "query.x", "", "0", "\u200b"]
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 5000, "0.1e-400", "01", "0x1", "1_0"]
BYTES = [
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x00",
    b"\r",
    b"\r\n",
    b"\n",
    b"\x0b",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
    b"\x1f\x8b",
]
HALVES = [
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\ud83d\\ude00"',
    '"a\\u0000b"',
    '"\\u"',
    '"\\x41"',
    "'a'",
    '"a',
    "[1,]",
    "{,}",
    "//a",
]

texts = st.one_of(st.sampled_from(["q", " ", "", "a b", "\u200b", "é", "🙂", "\x07", "\u2028"]), st.text(max_size=8))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(scalars, lambda one: st.lists(one, max_size=3) | st.dictionaries(texts, one, max_size=3), max_leaves=6)
passages = st.one_of(texts, st.fixed_dictionaries({}, optional={"title": values, "text": values, "docid": values, "_id": values}))
near_rows = st.fixed_dictionaries(
    {"query": texts, "pos": st.lists(passages, max_size=3)},
    optional={
        "neg": st.lists(passages, max_size=3) | values,
        "prompt": values,
        "pos_scores": st.lists(st.floats() | st.integers(), max_size=3) | values,
        "neg_scores": st.lists(values, max_size=3),
    },
)
rows = st.one_of(near_rows, st.dictionaries(st.sampled_from(NAMES), values, max_size=6), values)


def dumped(value: Any, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf8", "surrogatepass")


lines = st.one_of(
    st.builds(dumped, rows, st.booleans()),
    st.builds(dumped, near_rows, st.booleans()),
    st.binary(max_size=30),
    st.sampled_from([each.encode() for each in (*NUMBERS, *HALVES)]),
    st.sampled_from([*NUMBERS, *HALVES]).map(lambda odd: f'{{"query": "q", "pos": ["p"], "neg": {odd}}}'.encode()),
    st.sampled_from([*NUMBERS, *HALVES]).map(lambda odd: f'{{"query": {odd}, "pos": [{odd}], "pos_scores": [{odd}]}}'.encode()),
    st.tuples(st.builds(dumped, near_rows, st.booleans()), st.sampled_from(BYTES), st.integers(0, 60)).map(
        lambda drawn: drawn[0][: drawn[2]] + drawn[1] + drawn[0][drawn[2] :]
    ),
)
files = st.lists(lines, max_size=6).map(b"\n".join)
COLUMNS: list[dict[str, Any]] = [
    {},
    {"query": "query.x", "pos": "pos.text"},
    {"query": ["query", "prompt"], "pos": ["pos", "neg"]},
    {"query": 0, "pos": 1},
    {"pos": "pos.0.text", "neg": "neg.1"},
]


def scanned(path: Path, columns: dict[str, Any], kind: Any = "rows", labels: Any = None) -> list[Found | Fault]:
    """Every row of a file, held against what a row must be."""
    found = list(scan(Reading(kind, [str(path)], None, columns, labels), 0, 1))
    for each in found:
        file, _, line = each.where.rpartition(":")
        assert (file, line.isdecimal()) == (str(path), True), each.where
        if isinstance(each, Fault):
            assert each.message.startswith(f"{each.where}: ")
            assert "\n" not in each.message
            each.message.encode("utf8", "surrogateescape" if not path.suffix else "strict")
        elif isinstance(each.row, Row):
            row = each.row
            assert row.query.strip()
            assert row.positives or labels
            assert all(isinstance(text, str) and text.strip() for text in [*row.positives, *(row.negatives or [])])
            "".join([row.query, *row.positives, *(row.negatives or []), row.prompt or ""]).encode()
            for scores, of in ((row.positive_scores, row.positives), (row.negative_scores, row.negatives)):
                assert scores is None or (len(scores) == len(of or []) and all(map(math.isfinite, scores)))
        else:
            assert each.row.strip()
            each.row.encode()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@example(b"[" * 100_000, {})
@example(b'{"query": ' * 3000, {})
@example(b'{"query": "q", "pos": ' + b"[" * 900 + b"]" * 900 + b"}", {})
@example(b'{"query": "q", "pos": ["p"], "pos_scores": [' + b"9" * 400 + b"]}", {})
@example(b'{"query": "\\ud800", "pos": ["p"]}', {})
@given(files, st.sampled_from(COLUMNS))
@at_most(300)
def test_a_file_of_anything_is_rows_and_faults_by_line(folder, content, columns):
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    found = scanned(path, columns)
    used = [line for line in content.split(b"\n") if line.strip()]
    assert len(found) == len(used)
    scanned(path, {"text": columns.get("query", "query")}, "texts")


@given(files, st.sampled_from(["column", "query"]))
@at_most(100)
def test_labels_of_anything_are_rows_and_faults_by_line(folder, content, column):
    path = folder / "labelled.jsonl"
    path.write_bytes(content)
    scanned(path, {}, "rows", {"column": column, "pos": [1, "q"], "neg": [0]})


@given(files, st.integers(0, 10**6), st.integers(0, 255), st.booleans())
@at_most(150)
def test_a_damaged_gzip_is_rows_and_faults_by_line(folder, content, place, byte, cut):
    packed = bytearray(gzip.compress(content, mtime=0))
    packed[place % len(packed)] ^= byte
    path = folder / "rows.jsonl.gz"
    path.write_bytes(packed[: place % len(packed)] if cut else packed)
    scanned(path, {})


@given(st.lists(st.builds(dumped, near_rows, st.booleans()), max_size=5), st.sampled_from(["stop", "skip"]))
@at_most(25)
def test_opening_gives_rows_or_one_line(folder, content, on_bad_row):
    path = folder / "opened.jsonl"
    path.write_bytes(b"\n".join(content))
    expected = [each.row for each in scanned(path, {}) if isinstance(each, Found)]
    limits = {"query_max_len": 8, "passage_max_len": 8, "query_instruction": "", "missing_negatives": "random", "split": "train"}
    source = jsonl([str(path)], columns={}, labels=None, corpus=None, on_bad_row=on_bad_row, **limits)
    assert source.rows is not None
    try:
        opened = source.rows()
    except ValueError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert len(opened) == len(expected)
    for ours, row in zip(opened.take(range(len(opened))), expected, strict=True):
        assert (ours.query, list(ours.positives), list(ours.negatives)) == (
            row.query,
            list(row.positives),
            list(row.negatives or []),
        )
