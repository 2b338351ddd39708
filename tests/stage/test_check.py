"""stage=check: every kind of broken row found with its line, the same for any number of workers, and the page."""

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bgetrain.data.check_kinds import KINDS


def good(number: int) -> dict[str, Any]:
    """A row that is like no other."""
    names = [f"{chr(97 + number % 26)}{chr(97 + number // 26)}{letter}" for letter in "klmnopqrst"]
    return {"query": f"where is {names[0]} of {names[1]}", "pos": [" ".join(names)], "neg": [" ".join(reversed(names))]}


LONG = "the quick brown fox jumps over the lazy dog while the grey owl sleeps in the old barn beside the river"
BIRDS = "do all the birds of the north fly south in the winter months of the years"
# kind -> the lines that show it, each of which shows no other kind
BROKEN: dict[str, list[Any]] = {
    "malformed": ['{"query": "fox"', b'{"query": "\xff", "pos": ["a"]}', "[1, 2]", "null"],
    "no_query": [{"pos": ["a fox"]}, {"query": 3, "pos": ["a fox"]}],
    "empty_query": [{"query": "", "pos": ["a fox"]}, {"query": " \t", "pos": ["a fox"]}],
    "bad_prompt": [{"query": "q prompt", "pos": ["a fox"], "prompt": 3}],
    "no_positive": [{"query": "q none", "pos": []}, {"query": "q null"}],
    "empty_passage": [{"query": "q empty", "pos": ["a fox", " "]}],
    "bad_passage": [{"query": "q number", "pos": [3]}],
    "empty_negative": [{"query": "q negative", "pos": ["a fox"], "neg": [""]}],
    "bad_negative": [{"query": "q negative", "pos": ["a fox"], "neg": [[]]}],
    "bad_scores": [
        {"query": "q scores", "pos": ["a fox"], "pos_scores": [1.0, 2.0]},
        '{"query": "q nan", "pos": ["a fox"], "pos_scores": [NaN]}',
    ],
    "query_is_positive": [{"query": "The Same Text", "pos": ["the  same text"]}],
    "positive_is_negative": [{"query": "q both", "pos": ["an ibex stands"], "neg": ["An ibex stands"]}],
    "repeated_positive": [{"query": "q repeated", "pos": ["one yak", "one yak"]}],
    "repeated_negative": [{"query": "q again", "pos": ["one emu"], "neg": ["gnu", "gnu"]}],
    "instruction_twice": [{"query": "Find: the newt", "pos": ["newts here"]}],
    "replacement_character": [{"query": "q caf\ufffd", "pos": ["coffee there"]}],
    "control_character": [{"query": "q bell", "pos": ["ding \x07 dong"]}],
    "html": [{"query": "q web", "pos": ["<div class='x'>page</div>"]}],
    "duplicate_row": [good(1)],
    "duplicate_query": [{"query": good(2)["query"], "pos": ["another answer altogether"]}],
    "near_duplicate_passage": [{"query": "q close", "pos": [f"{LONG} and dreams"]}],
    "near_duplicate_query": [{"query": f"{LONG}!", "pos": ["an answer to it"]}],
    "leaked_query": [{"query": "what do  OTTERS eat", "pos": ["fish and more"]}],
    "leaked_passage": [
        {"query": "q leak", "pos": ["title Otters eat fish"]},
        {"query": "q two", "pos": ["x y"], "neg": ["Title otters eat fish"]},
    ],
    "shared_passage": [{"query": "q shared", "pos": ["bears sleep all winter"]}],
    "near_leaked_query": [{"query": BIRDS.removesuffix("s"), "pos": ["some do"]}],
}  # fmt: skip
FIRST = [
    *map(good, range(6)),
    {"query": LONG, "pos": [f"{LONG} and snores"]},
    {"query": "q snore", "pos": [f"{LONG} and dreamt"]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`plain.jsonl` and `packed.jsonl.gz` with all of BROKEN among good rows, and an evaluation set in `eval/`."""
    folder = tmp_path_factory.mktemp("check")
    rows: list[tuple[str, Any]] = [("", row) for row in FIRST]
    for number, (kind, broken) in enumerate(BROKEN.items(), 10):
        rows += [("", good(number)), *((kind, row) for row in broken)]
    lines = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode() for _, row in rows
    ]
    half = len(lines) // 2
    (folder / "plain.jsonl").write_bytes(b"\n".join(lines[:half]) + b"\n\n")
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[half:])))
    expected: dict[str, list[str]] = {}
    for number, (kind, _) in enumerate(rows):
        place = f"{folder}/plain.jsonl:{number + 1}" if number < half else f"{folder}/packed.jsonl.gz:{number - half + 1}"
        expected.setdefault(kind, []).append(place)
    del expected[""]
    expected["near_duplicate_passage"].insert(0, f"{folder}/plain.jsonl:8")  # of line 7
    (folder / "expected.json").write_text(json.dumps(expected))
    evaluation = folder / "eval"
    (evaluation / "qrels").mkdir(parents=True)
    corpus = [
        ("d0", "", "Title otters eat FISH"),
        ("d1", "title", "otters eat fish"),
        ("d2", "", "Bears sleep all winter"),
        ("d3", "", "geese"),
    ]
    (evaluation / "corpus.jsonl").write_text("".join(json.dumps({"_id": a, "title": b, "text": c}) + "\n" for a, b, c in corpus))
    queries = [
        ("t", good(3)["query"]),
        ("a", "What do otters eat"),
        ("b", BIRDS),
    ]
    (evaluation / "queries.jsonl").write_text("".join(json.dumps({"_id": a, "text": b}) + "\n" for a, b in queries))
    (evaluation / "qrels/train.tsv").write_text("t\td2\t1\n")  # training queries of the set are no leak
    (evaluation / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\na\td1\t1\nb\td3\t1\n")
    return folder


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


def check(world, output: Path, *overrides: str) -> dict[str, Any]:
    from ranks import run_stage

    figures = run_stage(world, ["stage=check", f"output_dir={output}", *overrides])
    report = json.loads((output / "report.json").read_text("utf8"))
    assert figures["counts"] == report["counts"]
    return report


def of(folder: Path, *more: str) -> list[str]:
    files = f"data.files=[{folder}/plain.jsonl,{folder}/packed.jsonl.gz]"
    return ["data=jsonl", files, "data.query_instruction='Find: '", "check.near_duplicates=0.85", *more]


@pytest.fixture(scope="module")
def reports(world, folder, tmp_path_factory):
    """Number of workers -> the folder of its report."""
    made = {}
    for number in (1, 3):
        made[number] = tmp_path_factory.mktemp("out")
        check(world, made[number], *of(folder, f"check.leakage=[{folder}/eval]", f"check.num_workers={number}"))
    return made


def test_every_broken_row_is_found_with_its_line_and_nothing_else_is(folder, reports):
    report = json.loads((reports[1] / "report.json").read_text("utf8"))
    expected = json.loads((folder / "expected.json").read_text())
    (source,) = report["sources"]
    assert {kind: found["places"] for kind, found in source["kinds"].items()} == expected
    assert report["counts"] == {kind: len(places) for kind, places in expected.items()}
    assert len(expected) == len(BROKEN) >= 25
    unusable = sum(len(places) for kind, places in expected.items() if KINDS[kind].severity == "unusable")
    assert report["rows"] - report["usable_rows"] == unusable == 17
    elsewhere = {"unknown_passage", "unknown_negative", "no_label", "near_leaked_passage"}  # of other forms of data
    assert set(KINDS) - set(BROKEN) == elsewhere | {"empty_text", "no_text", "duplicate_text", "near_duplicate_text"}


def test_what_is_said_of_a_place_names_the_other_one(folder, reports):
    kinds = json.loads((reports[1] / "report.json").read_text("utf8"))["sources"][0]["kinds"]
    assert kinds["duplicate_row"]["details"] == [f"same as {folder}/plain.jsonl:2"]
    assert kinds["duplicate_query"]["details"] == [f"same as {folder}/plain.jsonl:3"]
    assert kinds["leaked_query"]["details"] == [f"same as {folder}/eval/queries.jsonl:2"]
    # line 1 has the same text and is relevant to nothing
    assert kinds["leaked_passage"]["details"] == [f"same as {folder}/eval/corpus.jsonl:2"] * 2
    assert kinds["shared_passage"]["details"] == [f"same as {folder}/eval/corpus.jsonl:3"]
    assert kinds["near_leaked_query"]["details"][0].startswith(f"close to {folder}/eval/queries.jsonl:3 (similarity 0.9")
    assert kinds["near_duplicate_query"]["details"][0].startswith(f"close to {folder}/plain.jsonl:7 (similarity 0.9")
    assert kinds["malformed"]["details"][0].startswith("not JSON: ")


def test_three_workers_write_what_one_writes(reports):
    assert (reports[1] / "report.json").read_bytes() == (reports[3] / "report.json").read_bytes()
    assert (reports[1] / "report.html").read_bytes() == (reports[3] / "report.html").read_bytes()
    assert sorted(path.name for path in reports[3].iterdir()) == ["config.yaml", "provenance.json", "report.html", "report.json"]


class Page(HTMLParser):
    """What a page refers to, and whether its elements close in order."""

    VOID = ("meta", "link", "img", "br", "hr", "input", "rect", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [str(value) for name, value in attributes if name in ("href", "src", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(folder, reports):
    text = (reports[1] / "report.html").read_text("utf8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.references == []
    assert not re.search(r"https?:|url\(|@import", text)
    assert page.tags.count("svg") == 4  # tokens of queries and passages, positives and negatives of a row
    assert "script" not in page.tags
    assert "<div class='x'>" not in text  # what rows hold is text here
    for kind, places in json.loads((folder / "expected.json").read_text()).items():
        assert f"<b>{kind.replace('_', ' ')}</b>" in text
        assert all(f"<code>{place}</code>" in text for place in places)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
