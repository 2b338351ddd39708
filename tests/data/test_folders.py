"""What `data.path` of data=beir stands for."""

from pathlib import Path

import pytest

from bgetrain.data.corpus import beir
from bgetrain.data.folders import sets_of


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("nq", "fiqa", "forum/one", "forum/two", "other/nq"):
        (tmp_path / name / "qrels").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "nq.zip").touch()
    return tmp_path


def test_patterns_folders_of_sets_and_lists_name_the_sets_in_them(root):
    forum = {"forum/one": root / "forum/one", "forum/two": root / "forum/two"}
    assert sets_of(f"{root}/nq") == {"nq": root / "nq"}
    assert list(sets_of(f"{root}/[fn]*").items()) == [("fiqa", root / "fiqa"), *forum.items(), ("nq", root / "nq")]
    assert list(sets_of([f"{root}/nq", f"{root}/forum"]).items()) == [("nq", root / "nq"), *forum.items()]
    assert sets_of(f"{root}/forum") == {"one": root / "forum/one", "two": root / "forum/two"}  # alone it is all there is
    assert sets_of(f"{root}/nowhere") == {"nowhere": root / "nowhere"}  # opened, it says what it lacks


def test_nothing_and_two_sets_of_one_name_are_refused(root):
    with pytest.raises(ValueError, match=r"data.path=\[\] names no folder"):
        sets_of([])
    with pytest.raises(ValueError, match=r"notes/\*: no folder in BEIR layout matches"):
        sets_of(f"{root}/notes/*")
    with pytest.raises(ValueError, match=f"two sets named nq, {root}/nq and {root}/other/nq: "):
        sets_of([f"{root}/nq", f"{root}/other/nq"])


def test_several_folders_are_a_mixture_to_train_on(beir_folder, tmp_path):
    (tmp_path / "again").symlink_to(beir_folder)
    common = {"query_max_len": 8, "passage_max_len": 9, "query_instruction": "find: ", "missing_negatives": "random"}
    made = beir([str(beir_folder), str(tmp_path / "again")], split="train", **common)
    assert made.mix is not None
    assert [part.name for part in made.mix.parts] == [beir_folder.name, "again"]
    assert [len(part.source.rows()) for part in made.mix.parts] == [16, 16]
    assert (made.query_instruction, made.query_max_len, made.passage_max_len, made.split) == ("find: ", 8, 9, "train")
    assert len(made.texts()) == 80
    assert beir(str(beir_folder), split="train", **common).mix is None
