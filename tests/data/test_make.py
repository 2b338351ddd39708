"""The cache holds the rows that can be used, in the order of the files, whoever read them, and says what it left out."""

import json
import pickle
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest

from bgetrain.data import make, pieces, rows, store
from bgetrain.data.pieces import part_of, pieces_of
from bgetrain.sources import Fault, Found, Row

MORE = dict(
    columns={}, labels=None, corpus=None, missing_negatives="random",
    query_max_len=8, passage_max_len=8, query_instruction="", split="train",
)  # fmt: skip
BAD = {
    "malformed": b'{"query": "q"', "no_query": b'{"pos": ["p"]}', "empty_query": b'{"query": " ", "pos": ["p"]}',
    "no_positive": b'{"query": "q", "pos": []}', "empty_passage": b'{"query": "q", "pos": [""]}',
    "empty_negative": b'{"query": "q", "pos": ["p"], "neg": [""]}', "bad_passage": b'{"query": "q", "pos": [3]}',
    "bad_negative": b'{"query": "q", "pos": ["p"], "neg": true}', "bad_prompt": b'{"query": "q", "pos": ["p"], "prompt": 1}',
    "bad_scores": b'{"query": "q", "pos": ["p"], "pos_scores": [1, 2]}',
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(make, "MOST_PROCESSES", 1)
    return tmp_path / "cache"


def source(path, on_bad_row="stop"):
    return rows.jsonl([str(path)], on_bad_row=on_bad_row, **MORE)


def good(number: int) -> bytes:
    """One row, of a length of its own."""
    draw = random.Random(number)
    row = {"query": f"q{number} é", "pos": ["p" * draw.randint(1, 90)], "neg": ["n"] * draw.randint(0, 3)}
    return json.dumps(row, ensure_ascii=False).encode()


def with_faults(path, count: int) -> dict[int, str]:
    """Writes good rows, empty lines and each kind of bad row, over and over; returns line -> kind."""
    kinds, lines, expected = list(BAD), [], {}
    for number in range(1, count + 1):
        kind = kinds[number // 5 % len(kinds)]
        if number % 5 == 0:
            expected[number] = kind
        lines.append(BAD[kind] if number % 5 == 0 else b"" if number % 7 == 0 else good(number))
    path.write_bytes(b"\n".join(lines))
    return expected


@pytest.mark.parametrize("piece_bytes", [1, 700, 1 << 30])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_scan_in_parts_finds_every_row_once_in_order_and_every_fault_with_its_line(tmp_path, monkeypatch, piece_bytes, parts):
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "r.jsonl"
    expected = with_faults(path, 120)
    opened = source(path)
    found = [each for part in range(parts) for each in opened.scan(part, parts)]
    faults = [each for each in found if isinstance(each, Fault)]
    assert [(each.where, each.kind) for each in faults] == [(f"{path}:{line}", kind) for line, kind in expected.items()]
    assert all(each.message.startswith(f"{each.where}: ") for each in faults)
    sound = [each for each in found if isinstance(each, Found)]
    assert [(each.where, each.row.query) for each in sound] == [
        (f"{path}:{n}", f"q{n} é") for n in range(1, 121) if n % 5 and n % 7
    ]
    with pytest.raises(ValueError, match=re.escape(faults[0].message)):  # what stops is what the scan found first
        opened.rows()


@pytest.mark.parametrize("kind", BAD)
def test_the_scan_and_the_cache_say_the_same_of_a_bad_row(tmp_path, kind):
    path = tmp_path / "r.jsonl"
    path.write_bytes(good(1) + b"\n\n" + BAD[kind] + b"\n" + good(2))
    _, fault, _ = source(path).scan(0, 1)
    assert (fault.kind, fault.where) == (kind, f"{path}:3")
    with pytest.raises(ValueError, match=f"^{re.escape(fault.message)}$"):
        source(path).rows()
    assert source(path, "skip").rows().notes[2] == f"    {fault.message}"


@pytest.mark.parametrize("piece_bytes", [1, 700, 1 << 30])
def test_skipped_rows_are_counted_and_told_at_each_opening(tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(make, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "r.jsonl"
    expected = with_faults(path, 150)
    kept = [n for n in range(1, 151) if n % 5 and n % 7]
    told = []
    for _ in range(2):  # made, then from the cache
        opened = source(path, "skip").rows()
        assert len(opened) == len(kept)
        assert [row.query for row in opened.take(range(len(kept)))] == [f"q{n} é" for n in kept]
        assert [opened.where(n) for n in (0, 70, len(kept) - 1)] == [f"{path}:{kept[n]}" for n in (0, 70, len(kept) - 1)]
        told.append(opened.notes)
    assert told[0] == told[1]
    assert told[0][0] == f"{path}:"
    bad = len(expected)
    head = f"  left out {bad} bad rows of {bad + len(kept)} (3 no_query, 3 empty_query, 3 no_positive, 3 empty_passage, "
    assert told[0][1].startswith(head)
    assert told[0][1].endswith("; the first 20 are:")
    assert [line.split(": ")[0].strip() for line in told[0][2:]] == [f"{path}:{line}" for line in list(expected)[:20]]
    assert source(tmp_path / "r.jsonl", "skip").texts().notes == told[0]
    assert source(tmp_path / "r.jsonl", "skip").retrieval("train").notes == told[0]


def test_a_sound_file_has_no_notes_and_one_without_a_sound_row_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(good(1))
    assert source(path, "skip").rows().notes == []
    path.write_bytes(BAD["no_query"])
    with pytest.raises(ValueError, match=r"r\.jsonl: no row of it can be used; left out 1 bad rows of 1 \(1 no_query\)"):
        source(path, "skip").rows()
    assert not [each for each in (tmp_path / "cache" / "bgetrain").iterdir() if each.name.startswith(".")]


def test_texts_are_skipped_and_told_too(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n{"text": " "}\n{"body": "b"}\n{"text": "c"}\n')
    limits = {key: MORE[key] for key in ("query_max_len", "passage_max_len", "query_instruction", "split")}
    for _ in range(2):
        opened = rows.text([str(path)], columns={}, on_bad_row="skip", **limits)
        texts = opened.texts()
        assert texts.take([0, 1]) == ["a", "c"]
        assert texts.notes[1:] == [
            "  left out 2 bad rows of 4 (1 empty_text, 1 no_text); they are:",
            f"    {path}:2: 'text' must be a text that is not empty, got ' '",
            f"    {path}:3: 'text' must be a text that is not empty, got None",
        ]
        assert [each.kind if isinstance(each, Fault) else each.row for each in opened.scan(0, 1)] == [
            "a", "empty_text", "no_text", "c",
        ]  # fmt: skip


def test_queries_among_positives_and_positives_among_negatives_are_counted_with_the_first_place(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 40)
    path = tmp_path / "r.jsonl"
    values = [
        {"query": "a", "pos": ["b"]}, {"query": "c", "pos": ["d", "c"]}, {"query": "e", "pos": ["f"], "neg": ["g", "f"]},
        {"query": "h", "pos": ["h"], "neg": ["h"]},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    for _ in range(2):
        assert source(path).rows().notes == [
            f"{path}:",
            f"  2 rows have a query equal to one of its positives; the first is {path}:2",
            f"  2 rows have a positive among its own negatives; the first is {path}:3",
        ]


def test_pieces_of_a_file_are_whole_lines_and_parts_share_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 300)
    content = b"\n".join(good(n) for n in range(200))
    (tmp_path / "r.jsonl").write_bytes(content)
    found = pieces_of(str(tmp_path / "r.jsonl"))
    assert [(a.stop, content[a.stop - 1 : a.stop]) for a in found[:-1]] == [(b.start, b"\n") for b in found[1:]]
    assert (found[0].start, found[-1].stop) == (0, len(content))
    shares = [part_of(found, part, 4) for part in range(4)]
    assert [piece for share in shares for piece in share] == found
    sizes = [sum(piece.stop - piece.start for piece in share) for share in shares]
    assert max(sizes) - min(sizes) < 1500


def test_several_processes_make_the_same_cache_as_one(tmp_path, monkeypatch, cache):
    for name, count in (("a", 300), ("b", 10), ("c", 200)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(good(n) + b"\n" for n in range(count)))
    with_faults(tmp_path / "d.jsonl", 100)
    found = []
    for processes in (1, 2):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / str(processes))
        monkeypatch.setattr(make, "MOST_PROCESSES", processes)
        for module in (make, pieces):
            monkeypatch.setattr(module, "PIECE_BYTES", 4000)
        opened = source(tmp_path / "*.jsonl", "skip").rows()
        number = len(opened)
        assert len(list(opened.store.folder.glob("*.arrow"))) > 4
        found.append((opened.take(range(number)), [opened.where(n) for n in range(0, number, 9)], opened.notes))
    assert found[0] == found[1]
    assert found[0][1][-1].startswith(f"{tmp_path}/d.jsonl:")


def test_the_first_bad_row_in_order_stops_whoever_meets_one_first(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "MOST_PROCESSES", 4)
    monkeypatch.setattr(make.os, "sched_getaffinity", lambda _: range(4))
    monkeypatch.setattr(make, "ProcessPoolExecutor", lambda number, mp_context: ThreadPoolExecutor(number))
    for module in (make, pieces):
        monkeypatch.setattr(module, "PIECE_BYTES", 400)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*(good(n) for n in range(300)), BAD["no_query"]]))
    with_faults(tmp_path / "b.jsonl", 100)
    with pytest.raises(ValueError, match=r"a\.jsonl:301: has no 'query'"):
        source(tmp_path / "*.jsonl").rows()


def test_rows_are_taken_from_any_batch_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(store, "RELEASE_ROWS", 3)  # pages are given back within the test
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n".join(good(n) for n in range(200)))
    opened = source(path).rows()
    assert len(opened.store.starts) > 10
    expected = [
        Row(value["query"], value["pos"], value["neg"], None) for value in map(json.loads, path.read_text("utf8").split("\n"))
    ]
    assert opened.take(range(200)) == expected
    draw = np.random.default_rng(0).integers(0, 200, 500).tolist()
    copy = pickle.loads(pickle.dumps(opened))  # as a worker process gets it
    for each in (opened, copy):
        assert each.take(draw) == [expected[n] for n in draw]
        assert each.take([]) == []
    assert opened.take(np.array([5, 4])) == [expected[5], expected[4]]
    for beyond in (200, -1):
        with pytest.raises(IndexError):
            opened.take([0, beyond])


def test_pages_that_were_read_do_not_stay_in_this_process_s_memory(tmp_path):
    """30 MB of rows are taken and the process's own share of their files stays under a third of that."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"".join(json.dumps({"query": f"{n}", "pos": ["x" * 3000]}).encode() + b"\n" for n in range(10_000)))
    opened = source(path).rows()
    size = sum(each.stat().st_size for each in opened.store.folder.glob("*.arrow"))
    assert size > 30e6
    for start in range(0, 10_000, 512):
        opened.take(range(start, min(start + 512, 10_000)))
    mapped = 0
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(opened.store.folder) in line
        elif ours and line.startswith("Rss:"):
            mapped += int(line.split()[1]) * 1024
    assert mapped < size / 3
