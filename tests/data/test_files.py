"""Lines of JSON and where their faults stand."""

import gzip
import json
import re

import pytest

from bgetrain.data.files import either, existing, fingerprint, lines

LONG = json.dumps({"text": "a" * 500}).encode() + b"\n"  # forty of them exceed every read-ahead buffer's first half


def fault(path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        list(lines(path))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_objects_come_with_their_line_and_empty_lines_are_passed_over(tmp_path, name):
    content = '{"a": 1}\n\n  \n{"b": "\u2028é"}\r\n{"c": 3}'.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = [(value, where.removeprefix(str(tmp_path))) for value, where in lines(tmp_path / name)]
    assert found == [({"a": 1}, f"/{name}:1"), ({"b": "\u2028é"}, f"/{name}:4"), ({"c": 3}, f"/{name}:5")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": }', ":31: not JSON: Expecting value at column 7"),
        (b'["a"]', ':31: must be a JSON object such as {"query": "...", "pos": ["..."]}, got ["a"]'),
        (b'{"a": "\xff"}', ":31: not UTF-8 text: invalid start byte"),
        (b'{"a": "\\ud83d"}', ":31: holds half a character"),
    ],
)
def test_a_malformed_line_is_named_however_far_the_file_is_read_ahead(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(LONG * 30 + line + b"\n" + LONG * 30)
    assert fault(tmp_path / "a.jsonl").startswith(message)


def test_whole_pairs_of_halves_are_characters(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "\\ud83d\\ude00"}\n')
    assert next(lines(tmp_path / "a.jsonl")).value == {"a": "\U0001f600"}


def test_a_truncated_gzip_names_the_line_at_which_it_ends(tmp_path):
    content = b"".join(json.dumps({"number": number, "hash": hash(str(number))}).encode() + b"\n" for number in range(3000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content)[:-2000])
    read = 0
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz:\d+: not a whole gzip file") as error:
        for read, _ in enumerate(lines(tmp_path / "a.jsonl.gz"), 1):  # noqa: B007
            pass
    assert read > 1000
    assert f":{read + 1}:" in str(error.value)


def test_what_is_no_gzip_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(LONG)
    assert fault(tmp_path / "a.jsonl.gz").startswith(":1: not a whole gzip file: Not a gzipped file")


def test_plain_stands_before_gz_and_neither_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has neither corpus\.jsonl nor corpus\.jsonl\.gz$"):
        either(tmp_path, "corpus.jsonl")
    (tmp_path / "corpus.jsonl.gz").touch()
    assert either(tmp_path, "corpus.jsonl").name == "corpus.jsonl.gz"
    (tmp_path / "corpus.jsonl").touch()
    assert either(tmp_path, "corpus.jsonl").name == "corpus.jsonl"


def test_a_missing_path_is_named_with_its_key_and_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert existing("~", "data.path") == tmp_path
    with pytest.raises(ValueError, match=r"^data\.path=nowhere: no such file or folder$"):
        existing("nowhere", "data.path")


def test_fingerprint_changes_with_either_end_and_the_size(tmp_path):
    path = tmp_path / "a"
    seen = set()
    for content in (b"abc", b"abd", b"bbc", b"abcd"):
        path.write_bytes(content)
        seen.add(json.dumps(fingerprint([str(path)])))
    assert len(seen) == 4
    assert json.loads(seen.pop())[str(path)].keys() == {"bytes", "sha256_of_ends"}
