"""The harvest of documented Python: its pairs, its splits, its cache and its messages."""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import warnings
from collections import Counter
from pathlib import Path

import pytest

from bgetrain.data import pydocs

DEFAULTS = {"packages": None, "max_files": 10_000, "max_rows": 100_000, "max_characters": 1000, "num_workers": 1}
SPLITS = ("train", "dev", "test")


def write_module(root: Path, name: str, number: int, words: str = "alpha beta gamma") -> None:
    functions = (
        f'def f{row}(x):\n    """Moves {words} {name} by step {"i" * row}."""\n    return x + "{name}{row}"\n'
        for row in range(1, number + 1)
    )
    path = root / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(functions), encoding="utf-8")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An installation of twenty modules of ten functions each."""
    folder = tmp_path / "lib"
    for number in range(20):
        write_module(folder, f"mod{'abcdefghijklmnopqrst'[number]}", 10)
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(folder))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def passages(folder: Path) -> dict[str, str]:
    return {row["title"]: row["text"] for split in SPLITS for row in rows(folder / split / "corpus.jsonl")}


def sentences(folder: Path) -> dict[str, str]:
    """Title to query, through the qrels."""
    found = {}
    for split in SPLITS:
        titles = {row["_id"]: row["title"] for row in rows(folder / split / "corpus.jsonl")}
        queries = {row["_id"]: row["text"] for row in rows(folder / split / "queries.jsonl")}
        header, *lines = (folder / split / "qrels" / f"{split}.tsv").read_text().splitlines()
        assert header == "query-id\tcorpus-id\tscore"
        judged = [line.split("\t") for line in lines]
        assert len(judged) == len(titles) == len(queries)
        assert not titles.keys() & queries.keys()  # some scorers drop a passage that has its query's id
        found |= {titles[passage]: queries[query] for query, passage, score in judged if score == "1"}
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/**/*.*")}


def harvest(cache: Path, **changed: object) -> Path:
    return pydocs.harvest(cache, **(DEFAULTS | changed))


def test_tests_and_nested_installations_are_not_read(root, tmp_path):
    for name in ("pack/tests/inside", "pack/test_inside", "test/inside", "pack/conftest", "site-packages/inside"):
        write_module(root, name, 3, words=name.replace("/", " "))
    write_module(root, "pack/inside", 3)
    titles = passages(harvest(tmp_path / "cache"))
    assert [title for title in titles if "pack" in title or "inside" in title or "test" in title] == [
        title for title in titles if title.startswith("pack.inside.f")
    ]
    assert "pack.inside.f1" in titles


def test_pairs_that_share_a_sentence_or_a_body_are_kept_once_and_the_vendored_copy_goes(root, tmp_path):
    template = 'def {}(x):\n    """{}"""\n    {}\n'
    one = template.format("one", "Counts the apples in a basket.", "return x + 'one'")
    (root / "fruit.py").write_text(one)
    (root / "modz" / "_vendor").mkdir(parents=True)
    (root / "modz" / "_vendor" / "fruit.py").write_text(
        template.format("copy", "COUNTS the  apples in a\n    basket", "return x + 'other'")
        + template.format("again", "Numbers all apples that lie there.", "return   x + 'one'")
    )
    folder = harvest(tmp_path / "cache")
    assert [title for title in passages(folder) if "fruit" in title] == ["fruit.one"]
    assert json.loads((folder / "harvest.json").read_text())["duplicates_dropped"] == 2


def test_standard_library_alone_gives_a_thousand_test_passages_and_disjoint_splits(tmp_path, monkeypatch):
    real = sysconfig.get_path
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: real("stdlib"))
    folder = harvest(tmp_path)
    counts = json.loads((folder / "harvest.json").read_text())
    assert 1000 <= counts["rows"]["test"] <= 2000
    assert 500 <= counts["rows"]["dev"] <= 1000
    sides = {"modules": {}, "sentences": {}, "bodies": {}}
    for split in SPLITS:
        corpus = rows(folder / split / "corpus.jsonl")
        assert len(corpus) == counts["rows"][split]
        sides["modules"][split] = {row["title"].split(".")[0] for row in corpus}
        sides["bodies"][split] = {" ".join(row["text"].split()) for row in corpus}
        queries = rows(folder / split / "queries.jsonl")
        sides["sentences"][split] = {" ".join(row["text"].casefold().split()) for row in queries}
        assert len(sides["bodies"][split]) == len(sides["sentences"][split]) == len(corpus)
    for name, sets in sides.items():
        for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
            assert not sets[one] & sets[other], f"{name} of {one} and {other}"


def test_giant_module_goes_to_train_and_is_a_fifth_of_a_split_at_most(root, tmp_path):
    for name in ("giant", "titan", "huge"):
        write_module(root, name, 60)
    folder = harvest(tmp_path / "cache")
    for split, part in (("test", 4), ("dev", 8)):
        found = Counter(row["title"].split(".")[0] for row in rows(folder / split / "corpus.jsonl"))
        assert not {"giant", "titan", "huge"} & found.keys()
        assert 380 // part <= found.total() < 380 // part + 10


def test_modules_fill_test_and_then_dev_in_the_order_of_their_hashes(root, tmp_path):
    names = sorted((path.stem for path in root.iterdir()), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    folder = harvest(tmp_path / "cache")
    expected = {"test": set(names[:5]), "dev": set(names[5:8]), "train": set(names[8:])}  # 200 / 4 and 200 / 8 rows
    for split in SPLITS:
        assert {row["title"].split(".")[0] for row in rows(folder / split / "corpus.jsonl")} == expected[split]


def test_a_passage_is_named_by_the_file_and_line_of_its_definition(root, tmp_path):
    folder = harvest(tmp_path / "cache")
    for split in SPLITS:
        for row in rows(folder / split / "corpus.jsonl"):
            path, _, line = pydocs.installed(row["_id"]).rpartition(":")
            assert Path(path).read_text().splitlines()[int(line) - 1].startswith(f"def {row['title'].rpartition('.')[2]}(")
    assert pydocs.installed("gone.py:3") == "gone.py:3"


def test_pretraining_texts_are_docstrings_and_code_of_train_only(root, tmp_path):
    folder = harvest(tmp_path / "cache")
    texts = {row["text"] for row in rows(folder / "train" / "texts.jsonl")}
    train = rows(folder / "train" / "corpus.jsonl")
    assert len(texts) == 2 * len(train)
    assert {row["text"] for row in train} < texts
    assert {row["text"] + "." for row in rows(folder / "train" / "queries.jsonl")} < texts


def test_result_depends_on_neither_worker_count_nor_file_order(root, tmp_path, monkeypatch):
    monkeypatch.setattr(pydocs, "CHUNK_FILES", 3)
    one = harvest(tmp_path / "one", max_files=17, max_rows=120)
    two = harvest(tmp_path / "two", max_files=17, max_rows=120, num_workers=2)
    walk = os.walk

    def backwards(top):
        return [(folder, folders, files[::-1]) for folder, folders, files in walk(top)][::-1]

    monkeypatch.setattr(pydocs.os, "walk", backwards)
    three = harvest(tmp_path / "three", max_files=17, max_rows=120)
    assert one.name == two.name == three.name
    assert len(contents(one)) == 10
    assert contents(one) == contents(two) == contents(three)


def test_caps_hold_and_a_smaller_cap_is_part_of_a_larger(root, tmp_path):
    few, many = (passages(harvest(tmp_path / "cache", max_rows=cap)) for cap in (50, 90))
    assert (len(few), len(many)) == (50, 90)
    assert few.keys() < many.keys()
    assert len({title.split(".")[0] for title in few}) > 15
    folder = harvest(tmp_path / "cache", max_files=12, max_characters=32)
    assert len({title.split(".")[0] for title in passages(folder)}) == 12
    assert max(map(len, passages(folder).values())) == 32
    assert max(len(row["text"]) for row in rows(folder / "train" / "texts.jsonl")) == 32


def test_second_call_reads_nothing_and_a_changed_file_is_harvested_anew(root, tmp_path, monkeypatch):
    first = harvest(tmp_path / "cache")
    reader = pydocs._read_all
    monkeypatch.setattr(pydocs, "_read_all", lambda *arguments: pytest.fail("the cache was not used"))
    assert harvest(tmp_path / "cache") == first
    monkeypatch.setattr(pydocs, "_read_all", reader)
    write_module(root, "moda", 11)
    assert harvest(tmp_path / "cache") != first
    assert harvest(tmp_path / "cache", max_characters=500) != first


def test_interrupted_harvest_leaves_nothing(root, tmp_path, monkeypatch):
    def interrupt(path, lines):
        path.write_text("half a row")
        raise KeyboardInterrupt

    monkeypatch.setattr(pydocs, "_write_jsonl", interrupt)
    with pytest.raises(KeyboardInterrupt):
        harvest(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_of_two_harvests_at_once_the_first_stays_and_the_second_leaves_nothing(root, tmp_path, monkeypatch):
    reader = pydocs._read_all

    def read_while_another_process_finishes(*arguments):
        monkeypatch.setattr(pydocs, "_read_all", reader)
        harvest(tmp_path / "cache")
        return reader(*arguments)

    monkeypatch.setattr(pydocs, "_read_all", read_while_another_process_finishes)
    folder = harvest(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [folder]
    assert len(passages(folder)) == 200


def test_files_that_do_not_parse_or_decode_are_counted_and_warn_of_nothing(root, tmp_path):
    (root / "syntax.py").write_text('"""Text"""\nprint "two"\n')
    (root / "coding.py").write_bytes(b'"""Text"""\n\n\n# \xff\n')
    (root / "null.py").write_bytes(b'"""Text"""\n\0\n')
    (root / "latin.py").write_bytes(
        b'# coding: latin-1\ndef caf\xe9(x):\n    """Brews \xe9 coffee for all guests."""\n    return x is 1, "\\d"\n'
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = harvest(tmp_path / "cache")
    counts = json.loads((folder / "harvest.json").read_text())
    assert (counts["files_read"], counts["files_skipped"]) == (21, 3)
    assert sentences(folder)["latin.caf\xe9"] == "Brews \xe9 coffee for all guests"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"packages": ["modaa"]},
            r"^packages: 'modaa' is not an installed top-level module; nearest names: .*\bmoda\b",
        ),
        ({"packages": ["moda"]}, r"^packages: 10 documented definitions in 1 top-level modules do not fill train, dev"),
        ({"packages": []}, r"^packages: 0 documented definitions in 0 top-level modules"),
        ({"max_rows": 0}, r"^max_rows must be at least 1, got 0$"),
        ({"num_workers": -1}, r"^num_workers must be at least 1, got -1$"),
    ],
)
def test_bad_argument_is_named_on_one_line(root, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message) as error:
        harvest(tmp_path / "cache", **changed)
    assert "\n" not in str(error.value)


def test_named_packages_alone_are_read_and_three_fill_three_splits(root, tmp_path):
    folder = harvest(tmp_path / "cache", packages=["moda", "modb", "modc"])
    assert {title.split(".")[0] for title in passages(folder)} == {"moda", "modb", "modc"}
    assert json.loads((folder / "harvest.json").read_text())["rows"] == {"train": 10, "dev": 10, "test": 10}


def test_module_imports_neither_torch_nor_transformers():
    code = "import sys, bgetrain.data.pydocs; print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
