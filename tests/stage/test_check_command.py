"""stage=check: figures against slow references, other kinds of data, and the command as one types it."""

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bgetrain import cli


def good(number: int) -> dict[str, Any]:
    """A row that is like no other."""
    names = [f"{chr(97 + number % 26)}{chr(97 + number // 26)}{letter}" for letter in "klmnopqrst"]
    return {"query": f"where is {names[0]} of {names[1]}", "pos": [" ".join(names)], "neg": [" ".join(reversed(names))]}


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


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.files=[{path}]"


# --- figures ----------------------------------------------------------------------------------------------------------


def test_lengths_are_those_of_the_model_s_tokenizer(world, model_folder, tmp_path):
    from transformers import AutoTokenizer

    rows = [
        {"query": "ban bur " * number, "pos": ["best kin " * number, "lun"], "neg": ["dor"] * (number % 2)}
        for number in range(1, 9)
    ]
    rows[0]["prompt"] = "gir gir gir "
    files = write(tmp_path / "rows.jsonl", rows)
    limits = ["data.query_max_len=12", "data.passage_max_len=10", "data.query_instruction='fast '"]
    report = check(world, tmp_path / "out", "data=jsonl", files, *limits, f"model.path={model_folder}", "check.num_workers=2")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    queries = [len(tokenizer(row.get("prompt", "fast ") + row["query"])["input_ids"]) for row in rows]
    passages = [len(tokenizer(text)["input_ids"]) for row in rows for text in [*row["pos"], *row["neg"]]]
    for name, lengths, limit in (("query", queries, 12), ("passage", passages, 10)):
        found = report["sources"][0]["lengths"][name]
        assert found["measured"] == f"tokens of {model_folder}"
        assert (found["texts"], found["tokens"], found["longest"]) == (len(lengths), sum(lengths), max(lengths))
        assert found["cut_texts"] == sum(length > limit for length in lengths)
        assert found["lost_tokens"] == sum(max(0, length - limit) for length in lengths)
        assert found["cut_ratio"] == pytest.approx(found["cut_texts"] / len(lengths))
        edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
        assert counts == [sum(low <= length < high for length in lengths) for low, high in pairwise(edges)]


def test_instructions_scores_negatives_and_languages_are_counted(world, tmp_path):
    english = "the children were playing with their friends in the garden behind the house"
    german = "die Kinder haben gestern mit ihren Freunden im Garten hinter dem Haus gespielt"
    rows = [
        {"query": f"{english} {number}", "pos": [f"{english} and {number}"], "neg": ["n"] * (number % 3)} for number in range(9)
    ]
    rows = [{**row, "neg": [f"n{place}" for place in range(len(row["neg"]))]} for row in rows]
    rows.append({"query": f"{english} then", "pos": [german], "prompt": "p: ", "pos_scores": [1.5]})
    files = write(tmp_path / "rows.jsonl", rows)
    (source,) = check(world, tmp_path / "out", "data=jsonl", files, "check.num_workers=1")["sources"]
    assert source["instructions"] == {"source": "", "rows_with_their_own": 1, "ratio_with_any": 0.1}
    assert source["scores"] == {"rows": 1, "ratio": 0.1}
    assert source["negatives_per_row"]["rows_without"] == 4
    assert source["negatives_per_row"]["mean"] == 0.9
    assert source["negatives_per_row"]["histogram"] == {"edges": [0, 1, 2, 3], "counts": [4, 3, 3]}
    assert source["languages"] == {"rows": 10, "query": {"en": 10}, "passage": {"en": 9, "de": 1}, "rows_of_two_languages": 1}
    assert source["lengths"]["query"]["measured"].startswith("estimate: ")
    assert check(world, tmp_path / "few", "data=jsonl", files, "check.language_rows=4", "check.num_workers=1")["sources"][0][
        "languages"]["rows"] == 4  # fmt: skip


def test_texts_for_pre_training_are_checked(world, tmp_path):
    texts = ["fox one two three four five six seven eight", "", "fox one two three four five six seven eight", "<p>x</p>",
             "fox one two three four five six seven eight?"]  # fmt: skip
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + '{"body": "x"}\n')
    report = check(world, tmp_path / "out", "data=text", f"data.files=[{path}]", "check.num_workers=1")
    found = {
        kind: [int(place.rpartition(":")[2]) for place in each["places"]] for kind, each in report["sources"][0]["kinds"].items()
    }
    assert found == {"empty_text": [2], "no_text": [6], "duplicate_text": [3], "near_duplicate_text": [5], "html": [4]}
    assert list(report["sources"][0]["lengths"]) == ["text"]


def test_a_retrieval_set_is_checked_and_leaks_into_itself(world, beir_folder, tmp_path):
    data = ["data=beir", f"data.path={beir_folder}"]
    report = check(world, tmp_path / "out", *data, f"check.leakage=[{beir_folder}]", "check.num_workers=1")
    assert (report["rows"], report["usable_rows"]) == (16, 16)
    assert report["leakage"] == {
        "splits": [f"{beir_folder}/qrels/test.tsv"], "queries": 8, "relevant_passages": 8, "passages": 40,
    }  # fmt: skip
    assert report["counts"]["shared_passage"] == 16  # of the train split: in the corpus, relevant to no test query
    assert "leaked_query" not in report["counts"]
    places = report["sources"][0]["kinds"]["shared_passage"]["places"]
    assert places[0] == f"{beir_folder}/qrels/train.tsv:2"


def test_a_sample_of_near_texts_is_said_to_be_one(world, tmp_path):
    files = write(tmp_path / "rows.jsonl", [good(number) for number in range(40)])
    for rows, sampled in ((20, ["query", "passage"]), (40, [])):
        report = check(world, tmp_path / str(rows), "data=jsonl", files, f"check.near_rows={rows}", "check.num_workers=1")
        assert report["sources"][0]["near_duplicates"]["sampled"] == sampled
    report = check(world, tmp_path / "none", "data=jsonl", files, "check.near_duplicates=null", "check.num_workers=1")
    assert report["sources"][0]["near_duplicates"] is None


def test_the_sources_of_a_mixture_are_reported_one_by_one(world, tmp_path):
    write(tmp_path / "a.jsonl", [good(0), good(1), good(1)])
    write(tmp_path / "b.jsonl", [good(2), {"query": ""}])
    (tmp_path / "flag").mkdir()
    write(tmp_path / "flag/c.jsonl", [good(3)])
    write(tmp_path / "flag/d.jsonl", [good(4), {"query": "q"}])
    sources = f"{{one: {{data: jsonl, files: [{tmp_path}/a.jsonl]}}, two: {{data: jsonl, files: [{tmp_path}/b.jsonl]}}, "
    sources += f"three: {{data: flagembedding, path: {tmp_path}/flag}}}}"
    report = check(world, tmp_path / "out", "data=mixture", f"data.sources={sources}", "check.num_workers=1")
    assert [source["data"] for source in report["sources"]] == [
        "one (data=jsonl)", "two (data=jsonl)", "three (c (data=jsonl))", "three (d (data=jsonl))",
    ]  # fmt: skip
    assert report["counts"] == {"duplicate_row": 1, "empty_query": 1, "no_positive": 1}
    assert report["sources"][0]["kinds"]["duplicate_row"]["places"] == [f"{tmp_path}/a.jsonl:3"]
    assert report["sources"][1]["kinds"]["empty_query"]["places"] == [f"{tmp_path}/b.jsonl:2"]
    assert report["sources"][3]["kinds"]["no_positive"]["places"] == [f"{tmp_path}/flag/d.jsonl:2"]
    assert report["rows"] == 8


# --- the command ------------------------------------------------------------------------------------------------------


def command(capfd, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["stage=check", "check.num_workers=1", *arguments])
    said = capfd.readouterr()
    return status, said.out, said.err


def test_the_command_ends_well_with_a_table_and_a_last_line_and_runs_anew_each_time(tmp_path, capfd):
    rows = tmp_path / "rows.jsonl"
    files = write(rows, [good(0), {"query": " "}, good(1)])
    for _ in range(2):
        status, out, _ = command(capfd, "data=jsonl", files, f"output_dir={tmp_path}/out")
        assert status == 0
        assert re.search(rf"empty_query +unusable +1 +33\.33 +{rows}:2", out)
        assert out.splitlines()[-1].startswith("check done: 1 of 3 rows cannot be used, 0 findings harm")
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["status"], result["rows"], result["counts"]) == ("done", 3, {"empty_query": 1})
    write(rows, [good(0), good(1)])  # mended: the same command checks again
    status, out, _ = command(capfd, "data=jsonl", files, f"output_dir={tmp_path}/out")
    assert status == 0
    assert "check done: all 2 rows can be used" in out


def test_strict_refuses_with_the_first_fault_and_leaves_the_report(tmp_path, capfd):
    files = write(tmp_path / "rows.jsonl", [good(0), good(0), {"query": "q"}, {"query": "r"}])
    status, _, err = command(capfd, "data=jsonl", files, f"output_dir={tmp_path}/out", "check.strict=true")
    assert status == 2
    assert err.splitlines()[-1].startswith(f"bgetrain: check.strict=true: {tmp_path}/rows.jsonl:3: no positive passage is listed")
    assert "2 such rows" in err
    assert (tmp_path / "out/report.html").exists()
    assert not (tmp_path / "out/result.json").exists()
    write(tmp_path / "rows.jsonl", [good(0), good(0)])  # a notice is no fault
    assert command(capfd, "data=jsonl", files, f"output_dir={tmp_path}/out", "check.strict=true")[0] == 0


def refusals(folder: Path) -> list[tuple[list[str], str]]:
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.jsonl").write_bytes(b"\x7fELF\x00\x01" * 100)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(b"ab\x00\n"))
    write(folder / "good.jsonl", [good(0)])
    jsonl = "data=jsonl"
    return [
        ([jsonl, f"data.files=[{folder}/none.jsonl]"], f"data.files={folder}/none.jsonl: no such file or folder"),
        ([jsonl, f"data.files=[{folder}/empty.jsonl]"], f"{folder}/empty.jsonl: no rows in it"),
        ([jsonl, f"data.files=[{folder}/binary.jsonl]"], f"{folder}/binary.jsonl: not a text file, byte 4 of it is zero"),
        ([jsonl, f"data.files=[{folder}/packed.jsonl.gz]"], f"{folder}/packed.jsonl.gz: not a text file, byte 2"),
        ([jsonl, f"data.files=[{folder}/good.jsonl]", f"check.leakage=[{folder}/x]"], f"check.leakage={folder}/x: no such file"),
        ([jsonl, f"data.files=[{folder}/good.jsonl]", "check.near_duplicates=0"], "check.near_duplicates=0 would make all"),
        ([jsonl, f"data.files=[{folder}/good.jsonl]", "model.path=/no/model"], "model.tokenizer=/no/model: "),
    ]


def test_what_cannot_be_checked_is_refused_in_one_line(tmp_path, capfd):
    for number, (arguments, words) in enumerate(refusals(tmp_path)):
        status, out, err = command(capfd, *arguments, f"output_dir={tmp_path}/{number}")
        assert (status, out) == (2, ""), (arguments, out, err)
        line = next(line for line in err.splitlines() if not line.startswith("check data="))
        assert line.removeprefix("bgetrain: ").startswith(words)
        assert err.count("bgetrain: ") == 1
