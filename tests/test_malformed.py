"""Rows and files that are not what they should be, and the one line that each is answered by.

Those of single functions stand beside these: tests/data/test_rows.py, test_files.py, test_formats.py and test_corpus.py for
rows, tests/test_errors.py for the command line, tests/model/test_body.py for models. Here are the odd ones: what other
programs, disks and strangers leave.
"""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgetrain import cli

GOOD = b'{"query": "q", "pos": ["p"], "neg": ["n"]}\n'
LIMITS = {"query_max_len": 8, "passage_max_len": 8, "query_instruction": "", "missing_negatives": "random", "split": "train"}


def refusal(capfd, call: Callable[[], Any]) -> str:
    """The one line that a user reads; what is no ValueError of ours is a crash, and its traceback fails the test."""
    capfd.readouterr()
    try:
        status = call()
    except ValueError as error:
        status = cli.refuse(error)
    said = capfd.readouterr()
    assert status == 2, f"accepted, or a crash: {said.err}"
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    return str(said.err).removeprefix("bgetrain: ").rstrip("\n")


def opened(path: Path | str, **more: Any) -> int:
    """Opens rows as `data=jsonl` does."""
    from bgetrain.data.rows import jsonl

    source = jsonl([str(path)], **{"columns": {}, "labels": None, "corpus": None, "on_bad_row": "stop", **LIMITS, **more})
    assert source.rows is not None
    return len(source.rows())


def row(**keys: Any) -> bytes:
    return json.dumps({"query": "q", "pos": ["p"], "neg": ["n"], **keys}).encode()


def deep(levels: int) -> bytes:
    return b'{"query": "q", "pos": ' + b"[" * levels + b'"p"' + b"]" * levels + b"}"


# --- rows: (what it is, the second line of a file, the line that is said of FILE:2) --------------------------------------------

LINES = [
    ("NUL bytes", b"\0" * 40, "not JSON: Expecting value at column 1"),
    ("a NUL in a string", b'{"query": "a\0b", "pos": ["p"]}', "not JSON: Invalid control character"),
    ("UTF-16", '{"query": "q", "pos": ["p"]}'.encode("utf-16"), "not UTF-8 text: invalid start byte"),
    ("latin-1", '{"query": "é", "pos": ["p"]}'.encode("latin1"), "not UTF-8 text: invalid continuation byte"),
    ("half of a surrogate pair in bytes", b'{"query": "\xed\xa0\x80", "pos": ["p"]}', "not UTF-8 text"),
    ("half of a surrogate pair as a key", b'{"\\udfff": 1, "query": "q", "pos": ["p"]}', "holds half a character"),
    ("lists without end", b"[" * 200_000, "not JSON"),
    ("objects without end", b'{"a":' * 200_000, "not JSON"),
    ("a passage 90 lists deep", deep(91), "every passage of 'pos' must be a text that is not empty, got [[["),
    ("a line of 20 MB that is no row", b'{"query": "' + b"x" * 20_000_000 + b'", "pos": [3]}', "every passage of 'pos' must be"),
    (
        "a number of 5,000 digits",
        b'{"query": "q", "pos": ["p"], "pos_scores": [' + b"9" * 5000 + b"]}",
        "not JSON that can be read",
    ),
    (
        "a score of 10^400",
        b'{"query": "q", "pos": ["p"], "pos_scores": [1e400]}',
        "'pos_scores' must hold finite numbers, got [inf]",
    ),
    ("a score of NaN", row(pos_scores=[float("nan")]), "'pos_scores' must hold finite numbers, got [nan]"),
    ("scores true and false", row(pos_scores=[True]), "'pos_scores' must be a list of numbers, got [True]"),
    ("one score, no list", row(pos_scores=0.5), "'pos_scores' must be a list of numbers, got 0.5"),
    (
        "more scores than passages",
        row(neg_scores=[1, 2]),
        "'neg_scores' has 2 scores for the 1 passages of 'neg': give one for each",
    ),
    ("a query of null", row(query=None), "'query' must be a text that is not empty, got None"),
    ("a query that is a list", row(query=["q"]), "'query' must be a text that is not empty, got ['q']"),
    ("null among the positives", row(pos=["p", None]), "every passage of 'pos' must be a text that is not empty, got None"),
    ("null among the negatives", row(neg=["n", None]), "every passage of 'neg' must be a text that is not empty, got None"),
    ("a passage that is a list", row(pos=[["p"]]), "every passage of 'pos' must be a text that is not empty, got ['p']"),
    ("a title of numbers", row(pos=[{"title": 3, "text": None}]), "every passage of 'pos' must be"),
    ("a prompt that is an object", row(prompt={"a": 1}), "'prompt' must be a text, got {'a': 1}"),
    ("two objects in a line", b'{"query": "q", "pos": ["p"]} {"query": "r", "pos": ["s"]}', "not JSON: Extra data at column 30"),
    ("a list with commas at the end of lines", b'{"query": "q", "pos": ["p"]},', "not JSON: Extra data at column 29"),
    ("a string", b'"query"', 'must be a JSON object such as {"query": "...", "pos": ["..."]}, got "query"'),
    (
        "keys of control characters",
        b'{"a\\nb": 1, "c": 2}',
        "has no 'query'; its keys are 'a\\nb', c: map them with data.columns",
    ),
    ("10,000 keys", json.dumps({f"k{n}": n for n in range(10_000)}).encode(), "k29 and 9970 more: map them with data.columns"),
]


@pytest.mark.parametrize(("line", "said"), [case[1:] for case in LINES], ids=[case[0] for case in LINES])
def test_a_malformed_row_is_one_line(line, said, capfd, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    told = refusal(capfd, lambda: opened(path))
    assert told.startswith(f"{path}:2: ")
    assert said in told
    assert len(told) < 1000


USED = [
    ("a byte order mark", b"\xef\xbb\xbf" + GOOD, 1),
    ("CRLF", GOOD.replace(b"\n", b"\r\n") * 2, 2),
    ("no newline at the end", GOOD + GOOD.rstrip(), 2),
    ("blank lines between", b"\n \t\n" + GOOD + b"\r\n" + GOOD, 2),
    ("a line separator inside a text", row(query="a\u2028b\x85c") + b"\n", 1),
    ("a key twice, of which the last counts", b'{"query": "", "query": "q", "pos": ["p"]}\n', 1),
    ("pos as one text", row(pos="p") + b"\n", 1),
    ("neg of null", row(neg=None) + b"\n", 1),
]


@pytest.mark.parametrize(("content", "rows"), [case[1:] for case in USED], ids=[case[0] for case in USED])
def test_what_other_programs_write_and_is_clear_is_read(content, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert opened(path) == rows


# --- files: (name, what makes it, the line) ------------------------------------------------------------------------------------


def parquet(**columns: list[Any]) -> Callable[[Path], Any]:
    def make(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    return make


def content(given: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(given)


def cut_parquet(path: Path) -> None:
    parquet(query=["q"] * 100, pos=[["p"]] * 100)(path)
    path.write_bytes(path.read_bytes()[:-20])


def flipped_parquet(path: Path) -> None:
    parquet(query=[f"q{n}" for n in range(5000)], pos=[["p"]] * 5000)(path)
    whole = bytearray(path.read_bytes())
    whole[40:3000] = os.urandom(2960)
    path.write_bytes(whole)


def saved(state: str) -> Callable[[Path], Any]:
    """A folder as `datasets` saves one, with another `state.json`."""

    def make(path: Path) -> None:
        path.mkdir()
        (path / "state.json").write_text(state)

    return make


FILES = [
    ("r.jsonl", Path.mkdir, "data.files: {path} is a folder: name its files, e.g. [{path}/*.jsonl]"),
    ("r.jsonl", lambda path: path.symlink_to(path), "data.files={path}: "),
    ("r.jsonl", lambda path: path.symlink_to(path.with_name("nowhere")), "data.files={path}: no such file or folder"),
    ("r.jsonl", lambda path: os.mkfifo(path), "data.files={path}: is no regular file"),
    ("r.jsonl", content(b""), "{path}: no rows in it"),
    ("r.jsonl", content(b" \n\t\n\r\n"), "{path}: no rows in it"),
    ("r.jsonl", content(b"\xef\xbb\xbf"), "{path}"),
    ("r.jsonl", content(gzip.compress(GOOD)), "{path}:1: not UTF-8 text"),
    ("r.json", content(b'[\n{"query": "q", "pos": ["p"]}\n]\n'), "{path}:1: not JSON"),
    ("r.jsonl.gz", content(GOOD), "{path}:1: not a whole gzip file: Not a gzipped file"),
    ("r.jsonl.gz", content(gzip.compress(GOOD)[:-5]), "not a whole gzip file"),
    ("r.jsonl.gz", content(gzip.compress(GOOD) + b"garbage"), "{path}:2: not a whole gzip file"),
    ("r.jsonl.gz", content(b""), "{path}: no rows in it"),
    ("r.jsonl.zst", content(b"no zstd"), "{path}:1: not a whole zstd file"),
    ("r.jsonl.xz", content(b"no xz"), "{path}:1: not a whole xz file"),
    ("r.parquet", content(b""), "{path}: cannot be read as parquet"),
    ("r.parquet", content(b"PAR1 no parquet PAR1"), "{path}: cannot be read as parquet"),
    ("r.parquet", cut_parquet, "{path}: cannot be read as parquet"),
    ("r.parquet", flipped_parquet, "{path}"),
    ("r.parquet", parquet(question=["q"], pos=[["p"]]), "{path}, row 1: has no 'query'; its keys are question, pos"),
    ("r.parquet", parquet(query=[1], pos=[["p"]]), "{path}, row 1: 'query' must be a text that is not empty, got 1"),
    ("r.parquet", parquet(query=[None], pos=[["p"]]), "{path}, row 1: 'query' must be a text that is not empty, got None"),
    ("r.parquet", parquet(query=["q"], pos=[[b"\xff"]]), "{path}, row 1: every passage of 'pos' must be"),
    ("r.parquet", parquet(query=[], pos=[]), "{path}: no rows in it"),
    ("r.arrow", content(b"ARROW1\0\0"), "{path}: cannot be read as an Arrow file"),
    ("set", saved("{"), "{path}/state.json: "),
    ("set", saved("{}"), "{path}/state.json: "),
    ("set", saved('{"_data_files": [{"filename": "nowhere.arrow"}]}'), "{path}/nowhere.arrow: "),
    ("set", saved('{"_data_files": [{"filename": "../../../etc/passwd"}]}'), "{path}/state.json: "),
]


@pytest.mark.parametrize(("name", "make", "said"), FILES, ids=[f"{number}-{case[0]}" for number, case in enumerate(FILES)])
def test_a_malformed_file_is_one_line(name, make, said, capfd, tmp_path):
    path = tmp_path / name
    make(path)
    assert said.format(path=path) in refusal(capfd, lambda: opened(path))
