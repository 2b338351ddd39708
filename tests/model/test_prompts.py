"""Prompts of a folder are those that sentence-transformers takes."""

import json

import pytest

from bgetrain.model.prompts import Prompts, prompts_of


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"query": "ask: ", "document": "read: ", "passage": "other: "}, ("ask: ", "read: ")),
        ({"document": "", "passage": "other: "}, ("", "")),
        ({"document": None, "passage": "other: "}, ("", "")),
        ({"query": None, "corpus": "third: ", "passage": "read: "}, ("", "read: ")),
        ({}, ("", "")),
    ],
)
def test_an_empty_prompt_of_documents_goes_before_other_names(tmp_path, known, expected):
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": known}))
    assert prompts_of(str(tmp_path)) == Prompts(*expected)


def test_a_folder_without_prompts_has_none_and_a_damaged_file_is_named(tmp_path):
    assert prompts_of(str(tmp_path)) == Prompts("", "")
    file = tmp_path / "config_sentence_transformers.json"
    for content in ("{", "[1]", '{"prompts": {"query": 1}}'):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"config_sentence_transformers\.json: "):
            prompts_of(str(tmp_path))
