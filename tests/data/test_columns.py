"""The column map: each form finds what it says, in a row as a file has it."""

import json
import re

import datasets
import pytest

from bgetrain.data import rows
from bgetrain.sources import Row

MORE = dict(
    corpus=None, on_bad_row="stop", missing_negatives="random",
    query_max_len=8, passage_max_len=8, query_instruction="", split="train",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read(tmp_path, values: list, columns: dict, labels=None, **changes):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf8")
    return rows.jsonl([str(path)], columns=columns, labels=labels, **{**MORE, **changes}).rows()


@pytest.mark.parametrize(
    ("value", "columns", "expected"),
    [
        ({"q": "a", "p": "b"}, {"query": "q", "pos": "p"}, Row("a", ["b"], [], None)),
        ({"anchor": "a", "positive": "b", "negative": "c"}, {"query": "anchor", "pos": "positive", "neg": "negative"},
         Row("a", ["b"], ["c"], None)),
        ({"question": "a", "answers": {"text": ["b", "c"], "start": [1, 2]}}, {"query": "question", "pos": "answers.text"},
         Row("a", ["b", "c"], [], None)),
        ({"query": "a", "answers.text": "b", "answers": {"text": "c"}}, {"pos": "answers.text"}, Row("a", ["b"], [], None)),
        ({"query": "a", "hits": [{"doc": {"body": "b"}}, {"doc": {"body": "c"}}]}, {"pos": "hits.doc.body"},
         Row("a", ["b", "c"], [], None)),
        ({"query": "a", "hits": [{"body": "b"}, {"body": "c"}]}, {"pos": "hits.1.body"}, Row("a", ["c"], [], None)),
        ({"set": ["a", "b", "c"]}, {"query": "set.0", "pos": "set.1"}, Row("a", ["b"], [], None)),
        ({"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d", "negative_3": None},
         {"query": "anchor", "pos": "positive", "neg": ["negative_1", "negative_2", "negative_3", "negative_4"]},
         Row("a", ["b"], ["c", "d"], None)),
        ({"query": "a", "pos": [{"title": "T", "text": "b"}], "neg": {"title": None, "text": "c"}}, {},
         Row("a", ["T b"], ["c"], None)),
        ({"title": " A ", "abstract": "b", "pos": "c"}, {"query": ["title", "abstract"]}, Row("A b", ["c"], [], None)),
        ({"title": None, "abstract": "b", "pos": "c"}, {"query": ["title", "abstract", "more"]}, Row("b", ["c"], [], None)),
        (["a", "b"], {"query": 0, "pos": 1}, Row("a", ["b"], [], None)),
        (["a", "b", "c"], {"query": 0, "pos": 1, "neg": 2}, Row("a", ["b"], ["c"], None)),
        (["T", "a", "b", "c"], {"query": [0, 1], "pos": [2, 3]}, Row("T a", ["b", "c"], [], None)),
        ({"query": "a", "pos": ["b"], "meta": {"instruction": "find: ", "s": [1, 2]}}, {"prompt": "meta.instruction"},
         Row("a", ["b"], [], "find: ")),
    ],
)  # fmt: skip
def test_each_form_of_a_column_finds_its_value(tmp_path, value, columns, expected):
    assert read(tmp_path, [value], columns).take([0]) == [expected]


@pytest.mark.parametrize(
    ("value", "columns", "message"),
    [
        ({"q": "a"}, {"query": "q.text", "pos": "p"}, "has no 'q.text'; its keys are q: map them"),
        ({"answers": []}, {"query": "answers.0"}, "has no 'answers.0'"),
        ({"a": "x"}, {"query": ["title", "abstract"]}, "has no 'title' and 'abstract'; its keys are a"),
        (
            {"title": " ", "abstract": None},
            {"query": ["title", "abstract"]},
            "'title' and 'abstract' must be a text that is not empty",
        ),
        (
            {"title": 1, "abstract": "b"},
            {"query": ["title", "abstract"]},
            "'title' and 'abstract' must be texts, to be joined, got 1",
        ),
        ({"query": "a", "n1": None}, {"pos": ["n1", "n2"]}, "'n1' and 'n2' must list at least one passage"),
        ({"query": "a", "n1": "b", "n2": " "}, {"pos": ["n1", "n2"]}, "every passage of 'n2' must be a text that is not empty"),
        (["a"], {"query": 0, "pos": 1}, "1 must list at least one passage, got None"),
        ([], {"query": 0, "pos": 1}, "has no 0; it has 0 items"),
        ({"a": 1}, {"query": 0, "pos": 1}, 'must be a list such as ["query", "positive"], got {'),
        (["a", "b"], {}, 'must be a JSON object such as {"query": "...", "pos": ["..."]}, got ["a", "b"]'),
    ],
)
def test_what_is_not_there_is_named_as_the_map_names_it(tmp_path, value, columns, message):
    with pytest.raises(ValueError, match=re.escape(f"r.jsonl:1: {message}")) as error:
        read(tmp_path, [value], columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"passage": "p"}, "data.columns has no key 'passage': it maps query, pos, neg, prompt, pos_scores, neg_scores"),
        ({"query": ""}, "data.columns.query must be a column, a path"),
        ({"query": None}, "data.columns.query must be"),
        ({"query": True}, "data.columns.query must be"),
        ({"query": -1}, "data.columns.query must be"),
        ({"neg": []}, "data.columns.neg must be"),
        ({"prompt": ["a", "b"]}, "data.columns.prompt=['a', 'b'] must be one column: lists are for query, text, pos, neg"),
        ({"query": 0, "pos": "answer"}, "data.columns={'query': 0, 'pos': 'answer'} mixes numbers"),
    ],
)
def test_a_map_that_means_nothing_is_refused_before_anything_is_read(columns, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        rows.jsonl(["nowhere.jsonl"], columns=columns, labels=None, **MORE)


def test_texts_may_be_joined_of_several_columns(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"title": "A", "body": "b"}\n{"title": null, "body": "c"}\n')
    limits = {key: MORE[key] for key in ("on_bad_row", "query_max_len", "passage_max_len", "query_instruction", "split")}
    opened = rows.text([str(tmp_path / "t.jsonl")], columns={"text": ["title", "body"]}, **limits)
    assert opened.texts().take([0, 1]) == ["A b", "c"]


NLI = {"query": "premise", "pos": "hypothesis"}
JUDGED = [("a", "x", 0), ("a", "y", 2), ("b", "n", 2), ("a", "z", 0), ("a", "w", 1), ("c", "v", 0), ("a", "x", 0), ("d", "u", -1)]


@pytest.mark.parametrize("names", [{}, {0: "entailment", 1: "neutral", 2: "contradiction", -1: "-"}])
def test_pairs_with_labels_become_rows_with_positives_and_negatives(tmp_path, names):
    values = [{"premise": p, "hypothesis": h, "label": names.get(label, label)} for p, h, label in JUDGED]
    labels = {"column": "label", "pos": [names.get(0, 0)], "neg": [names.get(2, 2)]}
    for _ in range(2):  # made, then from the cache
        opened = read(tmp_path, values, NLI, labels)
        assert opened.take(range(len(opened))) == [Row("a", ["x", "z"], ["y"], None), Row("c", ["v"], [], None)]
        assert [opened.where(n).rpartition(":")[2] for n in range(2)] == ["1", "6"]
        assert opened.notes == [
            f"{tmp_path}/r.jsonl:",
            "  2 rows have a label that is neither in data.labels.pos nor in data.labels.neg, and left out; the first is "
            f"{tmp_path}/r.jsonl:5",
            f"  1 row has a query without any positive, and left out; the first is {tmp_path}/r.jsonl:3",
        ]


def test_pairs_with_labels_are_scanned_one_by_one(tmp_path):
    values = [{"premise": p, "hypothesis": h, "label": label} for p, h, label in JUDGED] + [{"premise": "a", "hypothesis": "b"}]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    opened = rows.jsonl([str(path)], columns=NLI, labels={"column": "label", "pos": [0], "neg": [2]}, **MORE)
    *found, fault = opened.scan(0, 1)
    assert [(each.row.query, each.row.positives, each.row.negatives) for each in found] == [
        (p, [h] if label == 0 else [], [h] if label == 2 else []) for p, h, label in JUDGED if label in (0, 2)
    ]
    assert (fault.where, fault.kind) == (f"{path}:9", "no_label")
    with pytest.raises(ValueError, match=re.escape(fault.message)):
        opened.rows()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"column": "label", "pos": [1]}, "data.labels must have the keys column, pos and neg"),
        ({"column": "label", "pos": 1, "neg": [0]}, "data.labels.pos must be a list of labels"),
        ({"column": "label", "pos": [], "neg": [0]}, "data.labels.pos is empty"),
        ({"column": "label", "pos": [1], "neg": ["1"]}, "data.labels has 1 under pos and under neg"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        rows.jsonl(["nowhere.jsonl"], columns=NLI, labels=labels, **MORE)
