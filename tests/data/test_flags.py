"""FlagEmbedding's folders: what names and rows say of each set."""

import gzip
import json
import re

import pytest

from bgetrain.data.flags import FlagFile, flagembedding_files


def write(path, types: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"query": "q", "pos": ["p"], **({} if each == "none" else {"type": each})}) for each in types]
    content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def test_files_come_sorted_with_the_rules_of_their_names_and_rows(tmp_path):
    expected = sorted([
        FlagFile(write(tmp_path / "sts" / "b.jsonl", ["symmetric_sts"] * 3), "symmetric_sts", True),
        FlagFile(write(tmp_path / "sts" / "a_no_in_batch_neg.jsonl", ["symmetric_class"]), "symmetric_class", False),
        FlagFile(write(tmp_path / "sts" / "c_no_in_batch_neg.jsonl.gz", ["none"]), None, False),
        FlagFile(write(tmp_path / "class_no_in_batch_neg" / "d.json", ["none", "none"]), None, False),
        FlagFile(write(tmp_path / "z.jsonl", ["normal", "normal"]), "normal", True),
        FlagFile(write(tmp_path / "no_in_batch_neg_first.jsonl", ["only_1neg"]), "only_1neg", True),
    ])  # fmt: skip
    (tmp_path / "README.md").write_text("no data")
    assert flagembedding_files(str(tmp_path)) == expected
    assert flagembedding_files(expected[0].path) == expected[:1]
    assert flagembedding_files(str(tmp_path / "class_no_in_batch_neg")) == [
        each for each in expected if each.path.endswith("d.json")
    ]


@pytest.mark.parametrize(("types", "message"), [
    (["normal", "normal", "none"], ":3: 'type' is None, and 'normal' at "),
    (["none", "symmetric_sts"], ":2: 'type' is 'symmetric_sts', and None at "),
    ([3], ":1: 'type' must be a text, got 3"),
])  # fmt: skip
def test_rows_that_disagree_are_refused_by_file_and_line(tmp_path, types, message):
    path = write(tmp_path / "a.jsonl", types)
    with pytest.raises(ValueError, match=f"^{re.escape(path + message)}"):
        flagembedding_files(str(tmp_path))


def test_a_folder_without_data_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^data\.path=.*: has no \.parquet, \.json"):
        flagembedding_files(str(tmp_path))
    with pytest.raises(ValueError, match=r"^data\.path=nowhere: no such file or folder$"):
        flagembedding_files("nowhere")
