"""Files of a repository of the hub by name: a script beside them is in nobody's way."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from bgetrain.data import rows
from bgetrain.sources import Row


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, values: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(value) + "\n" for value in values).encode()))


def pair(query: str, positive: str) -> Row:
    return Row(query, [positive], [], None)


def from_hub(**changes: Any) -> Any:
    more: dict[str, Any] = {
        "path": "neuclir/csl",
        "config": None,
        "revision": None,
        "files": "data/csl.jsonl.gz",
        "columns": {"query": "title", "pos": "abstract"},
        "labels": None,
        "corpus": None,
        "on_bad_row": "stop",
        "query_max_len": 32,
        "passage_max_len": 32,
        "query_instruction": "",
        "missing_negatives": "random",
        "split": "train",
    }
    return rows.hub(**{**more, **changes})


def test_files_are_had_by_name_from_a_repository_that_holds_a_script(tmp_path, monkeypatch):
    """`datasets` refuses such a repository whatever is asked for."""
    write(tmp_path / "data/csl.jsonl.gz", [{"title": "t", "abstract": "a"}])
    write(tmp_path / "data/other.jsonl.gz", [{"title": "no", "abstract": "no"}])
    (tmp_path / "csl.py").write_text("raise SystemExit")
    asked: dict[str, Any] = {}

    def download(path, **more):
        asked.update({"path": path, **more})
        return str(tmp_path)

    monkeypatch.setattr("bgetrain.hub.settle", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = from_hub(revision="v2").rows()
    assert found.take([0]) == [pair("t", "a")]
    assert len(found) == 1
    assert {key: asked[key] for key in ("path", "repo_type", "revision", "allow_patterns")} == {
        "path": "neuclir/csl", "repo_type": "dataset", "revision": "v2", "allow_patterns": "data/csl.jsonl.gz"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"data\.files=data/none\*\.jsonl names no file of it"):
        from_hub(files="data/none*.jsonl").rows()


def test_a_local_copy_with_its_script_is_read_by_name_too(tmp_path):
    folder = tmp_path / "csl"
    write(folder / "data/csl.jsonl.gz", [{"title": "t", "abstract": "a"}])
    (folder / "csl.py").write_text("raise SystemExit")
    assert from_hub(path=str(folder)).rows().take([0]) == [pair("t", "a")]
    with pytest.raises(ValueError, match=r"^data\.path=.*csl: this folder cannot be read as a data set: .*scripts.*data\.files"):
        from_hub(path=str(folder), files=None).rows()


def test_csv_files_are_had_by_name_as_well(tmp_path):
    (tmp_path / "a.csv").write_text("title,abstract\nt,a\n")
    (tmp_path / "b.csv").write_text("title,abstract\nu,b\n")
    assert from_hub(path=str(tmp_path), files="*.csv").rows().take([0, 1]) == [pair("t", "a"), pair("u", "b")]


def test_what_cannot_be_downloaded_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr("bgetrain.hub.settle", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^data\.path=neuclir/csl: no local folder, and cannot be reached on the hub"):
        from_hub().rows()
