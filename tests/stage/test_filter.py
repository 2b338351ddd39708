"""stage=filter: what is kept and dropped, by hand; the same files for any number of ranks and after an interruption."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from bgetrain import config
from bgetrain.data import rows as row_files
from bgetrain.stage import filter as stage
from bgetrain.target import call

WORDS = ["ban", "bur", "best", "kin", "lun", "dor", "fast", "gir", "fist", "gun", "dar", "gor", "kar", "len", "bost", "ker"]


def run(world, overrides: list[str]) -> dict[str, Any]:
    from ranks import run_stage

    return run_stage(world, ["stage=filter", *overrides])


def several(world, runs: list[list[str]]) -> None:
    for overrides in runs:
        run(world, overrides)


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """60 rows; every third has two positives, some are very unlike their query, and two texts stand there more than once."""
    draw = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS, count))

    made: list[dict[str, Any]] = []
    for number in range(60):
        query = words(4)
        row: dict[str, Any] = {"query": query, "pos": [f"{query} {words(1)}" if number % 2 else words(6)]}
        if number % 3 == 0:
            row["pos"].append(words(3))
        if number % 10 == 0:
            row["pos"][0] = "ban bur best"
        made.append(row)
    made[1] |= {"neg": ["kin kin", "dor"], "prompt": "lun lun "}
    made[3] |= {"pos_scores": [7.5, -2.0], "neg": ["gun"], "neg_scores": [0.25]}
    return made


@pytest.fixture(scope="module")
def file(rows, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return path


def asked(model_folder, file, output, *more: str) -> list[str]:
    lengths = ["data.query_max_len=32", "data.passage_max_len=32"]
    data = ["data=jsonl", f"data.files=[{file}]", "data.query_instruction='gir gir '", *lengths]
    size = ["filter.rows_per_part=16", "chunk_tokens=100"]
    return [f"model.path={model_folder}", f"output_dir={output}", *data, *size, *more]


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text("utf8").splitlines()]


def written(folder: Path) -> dict[str, bytes]:
    """Every file that does not name the folder, the ranks or the time."""
    names = ("kept", "dropped", "counts")
    return {
        str(path.relative_to(folder)): path.read_bytes() for name in names for path in sorted((folder / name).rglob("part-*"))
    }


@pytest.fixture(scope="module")
def reference(model_folder):
    """texts -> unit embeddings by transformers alone, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)

    def embed(texts: list[str]) -> np.ndarray:
        found = []
        for text in texts:
            with torch.inference_mode():
                state = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=32)).last_hidden_state[0, 0]
            found.append((state / state.norm()).numpy())
        return np.stack(found)

    return embed


def test_positives_below_the_similarity_are_dropped_one_by_one_and_rows_without_any_left(
    world, model_folder, rows, file, reference, tmp_path
):
    queries = reference([row["query"] for row in rows])  # without the data's instruction or the row's prompt
    scores = [reference(row["pos"]) @ query for row, query in zip(rows, queries, strict=True)]
    threshold = float(np.median(np.concatenate(scores)))
    figures = run(world, asked(model_folder, file, tmp_path / "out", f"filter.min_similarity={threshold}"))
    kept, dropped = read(tmp_path / "out/kept"), read(tmp_path / "out/dropped")
    expected: dict[bool, list[tuple[str, list[str]]]] = {True: [], False: []}
    for row, values in zip(rows, scores, strict=True):
        for side in (True, False):
            texts = [text for text, value in zip(row["pos"], values, strict=True) if (value >= threshold) == side]
            expected[side] += [(row["query"], texts)] if texts else []
    assert [(row["query"], row["pos"]) for row in kept] == expected[True]
    assert [(row["query"], row["pos"]) for row in dropped] == expected[False]
    assert 0 < len(expected[True]) < 60
    by_text = {}
    for row, values in zip(rows, scores, strict=True):
        by_text |= {(row["query"], text): value for text, value in zip(row["pos"], values, strict=True)}
    for row in [*kept, *dropped]:
        for text, value in zip(row["pos"], row["similarity"], strict=True):
            assert value == pytest.approx(by_text[row["query"], text], abs=1e-4)  # it is rounded to 4 digits
    assert {each for row in dropped for each in row["dropped_by"]} == {"similarity"}
    assert figures["rows"] == 60
    assert figures["rows_kept"] == len(kept)
    assert figures["positives"] == 80
    assert figures["positives_dropped_by_similarity"] == sum(len(row["pos"]) for row in dropped)
    assert figures["positives_dropped_by_rank"] == 0


def test_what_a_row_has_besides_is_kept_and_its_own_scores_stay(world, model_folder, rows, file, tmp_path):
    run(world, asked(model_folder, file, tmp_path / "out", "filter.min_similarity=-1"))
    kept = read(tmp_path / "out/kept")
    assert [{key: row[key] for key in row if key not in ("similarity", "pos_scores")} for row in kept] == [
        {key: row[key] for key in row if key != "pos_scores"} for row in rows
    ]
    assert kept[3]["pos_scores"] == [7.5, -2.0]
    assert all(row["pos_scores"] == row["similarity"] for number, row in enumerate(kept) if number != 3)
    assert not (tmp_path / "out/dropped").exists()
    data = config.compose(["stage=mine", "data=jsonl", f"data.files=['{tmp_path}/out/kept/*.jsonl']"]).data
    opened = call(OmegaConf.to_container(data))
    read_back = opened.rows()
    assert [each.query for each in read_back.take(range(len(read_back)))] == [row["query"] for row in rows]


def test_positives_that_do_not_come_back_among_the_top_k_of_the_pool_are_dropped(
    world, model_folder, rows, file, reference, tmp_path
):
    """The pool is as large as the data: the first or second positive of each row, whichever the seed draws."""
    run(world, asked(model_folder, file, tmp_path / "out", "filter.min_similarity=null", "filter.top_k=2", "filter.pool=100"))
    from bgetrain.data.order import hashed

    drawn = hashed(42, stage.PASSAGE, np.arange(60)).tolist()
    pool = sorted({row["pos"][number % len(row["pos"])] for row, number in zip(rows, drawn, strict=True)})
    assert "ban bur best" in pool
    vectors = reference(pool)
    expected = {}
    for row in rows:
        query = reference([row["query"]])[0]
        against = vectors[[text not in row["pos"] for text in pool]] @ query
        for text in row["pos"]:
            expected[row["query"], text] = 1 + int((against > reference([text])[0] @ query + 1e-6).sum())
    kept, dropped = read(tmp_path / "out/kept"), read(tmp_path / "out/dropped")
    found = {(row["query"], text): rank for row in (*kept, *dropped) for text, rank in zip(row["pos"], row["rank"], strict=True)}
    assert found == expected
    assert {found[row["query"], text] <= 2 for row in kept for text in row["pos"]} == {True}
    assert {found[row["query"], text] <= 2 for row in dropped for text in row["pos"]} == {False}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["ranked_within"]["5"] == pytest.approx(sum(rank <= 5 for rank in expected.values()) / 80)
    assert report["positives_dropped_by_rank"] == sum(rank > 2 for rank in expected.values())
    assert not (tmp_path / "out/pool").exists()  # 4 bytes x width x passages, of use to nobody any more


def test_instructions_are_those_of_the_scorer(world, model_folder, rows, file, reference, tmp_path):
    more = ["filter.min_similarity=-1", "filter.query_instruction='kin '", "filter.passage_instruction='dor dor '"]
    run(world, asked(model_folder, file, tmp_path / "out", *more))
    row = read(tmp_path / "out/kept")[1]
    query, passage = reference([f"kin {rows[1]['query']}", f"dor dor {rows[1]['pos'][0]}"])
    assert row["similarity"] == [pytest.approx(query @ passage, abs=1e-4)]
    assert (row["query"], row["pos"]) == (rows[1]["query"], rows[1]["pos"])


def test_one_two_and_four_ranks_write_the_same_bytes(spawn, world, model_folder, file, tmp_path):
    kinds = {
        "similarity": ["filter.min_similarity=0.995"],
        "rank": ["filter.top_k=3", "filter.pool=40"],
        "look": ["filter.sample=33"],
    }
    found = {}
    for size in (1, 2, 4):
        runs = [asked(model_folder, file, tmp_path / f"{size}-{kind}", *more) for kind, more in kinds.items()]
        if size == 1:
            several(world, runs)
        else:
            spawn(size, several, runs)
        found[size] = {kind: written(tmp_path / f"{size}-{kind}") for kind in kinds}
    assert found[1] == found[2] == found[4]
    assert set(found[1]["similarity"]) >= {"kept/part-000000.jsonl", "dropped/part-000003.jsonl", "counts/part-000003.json"}
    assert set(found[1]["look"]) == {f"counts/part-00000{part}.json" for part in range(3)}


def test_a_run_that_was_stopped_goes_on_with_the_parts_that_are_not_done(world, model_folder, file, tmp_path, monkeypatch):
    more = ["filter.min_similarity=0.995", "filter.top_k=3", "filter.pool=40"]
    run(world, asked(model_folder, file, tmp_path / "whole", *more))
    plain, done = stage.one_part, []

    def until_third(job, part, *others):
        if part == 2:
            raise KeyboardInterrupt
        plain(job, part, *others)

    monkeypatch.setattr(stage, "one_part", until_third)
    with pytest.raises(KeyboardInterrupt):
        run(world, asked(model_folder, file, tmp_path / "out", *more))
    ends = {"counts": "json", "dropped": "jsonl", "kept": "jsonl"}
    there = {f"{kind}/part-{part:06d}.{end}" for kind, end in ends.items() for part in (0, 1)}
    assert set(written(tmp_path / "out")) == there
    (tmp_path / "out/counts/part-000000.json").unlink()  # as if it had been stopped just before its counts were written
    monkeypatch.setattr(stage, "one_part", lambda job, part, *others: (done.append(part), plain(job, part, *others)))
    run(world, asked(model_folder, file, tmp_path / "out", *more))
    assert done == [0, 2, 3]
    assert written(tmp_path / "out") == written(tmp_path / "whole")
    ours, whole = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "whole"))
    assert ours == whole


def test_parts_made_by_other_rules_are_not_mixed_with_those_that_are_there(world, model_folder, file, tmp_path):
    run(world, asked(model_folder, file, tmp_path / "out"))
    for other in ("filter.rows_per_part=20", "filter.min_similarity=0.1"):
        with pytest.raises(ValueError, match=r"part-000000\.json is of another model, other keys of `filter`"):
            run(world, asked(model_folder, file, tmp_path / "out", other, "resume=force"))
    run(world, asked(model_folder, file, tmp_path / "out", "filter.rows_per_part=20", "resume=never"))
    assert len(list((tmp_path / "out/counts").iterdir())) == 3  # what the first run left is gone


def test_a_look_scores_some_rows_and_drops_none(world, model_folder, rows, file, reference, tmp_path, capsys):
    more = ["filter.sample=20", "filter.min_similarity=null", "filter.top_k=2", "filter.pool=30"]
    figures = run(world, asked(model_folder, file, tmp_path / "out", *more))
    assert figures["rows"] == 20
    assert "rows_kept" not in figures
    assert not (tmp_path / "out/kept").exists()
    said = capsys.readouterr()
    assert "filter.min_similarity=0.9" in said.out
    assert "filter.top_k=20 " in said.out
    assert "filter.sample=null filters all" in said.err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert 20 <= report["positives"] <= 40
    assert (tmp_path / "out/similarity.png").read_bytes().startswith(b"\x89PNG")


def test_the_sources_of_a_mixture_are_filtered_each_with_a_pool_of_its_own(world, model_folder, rows, file, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"q": row["query"], "pos": row["pos"]}) + "\n" for row in rows[:20]))
    lengths = "query_max_len: 32, passage_max_len: 32"
    one = f"one: {{data: jsonl, files: [{file}], {lengths}}}"
    two = f"two: {{data: jsonl, files: [{other}], columns: {{query: q}}, {lengths}}}"
    more = ["filter.top_k=2", "filter.pool=1000", "filter.rows_per_part=16"]
    data = ["data=mixture", f"data.sources={{{one}, {two}}}"]
    run(world, [f"model.path={model_folder}", f"output_dir={tmp_path / 'out'}", *data, *more])
    run(world, asked(model_folder, file, tmp_path / "alone", *more))
    assert read(tmp_path / "out/kept/one") == read(tmp_path / "alone/kept")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {name: each["rows"] for name, each in report["sources"].items()} == {"one": 60, "two": 20}
    assert report["sources"]["two"]["rows_kept"] == len(read(tmp_path / "out/kept/two"))
    ranks = [rank for row in (*read(tmp_path / "out/kept/two"), *read(tmp_path / "out/dropped/two")) for rank in row["rank"]]
    assert max(ranks) <= 21


def test_counts_are_told_by_file(world, model_folder, file, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"query": "ban", "pos": ["ban"]}\n{"query": "kin", "pos": ["lun dor"]}\n')
    figures = run(world, asked(model_folder, f"{file},{other}", tmp_path / "out", "filter.min_similarity=0.99999"))
    sources = json.loads((tmp_path / "out/report.json").read_text())["sources"]
    assert sources[str(other)] == {"rows": 2, "rows_kept": 1}
    assert sources[str(file)]["rows"] == 60
    assert figures["rows"] == 62


def test_no_more_rows_than_those_of_a_part_or_a_shard_of_the_pool_are_read_at_once(
    world, model_folder, file, tmp_path, monkeypatch
):
    taken = []
    monkeypatch.setattr(stage, "SHARD", 10)
    plain = row_files.ArrowRows.take
    monkeypatch.setattr(row_files.ArrowRows, "take", lambda self, places: (taken.append(len(places)), plain(self, places))[1])
    run(world, asked(model_folder, file, tmp_path / "out", "filter.top_k=3", "filter.pool=40"))
    assert max(taken) == 16
    assert sum(taken) == 60 + 40


def test_a_pool_that_cannot_tell_anything_is_refused(world, model_folder, tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"query": "ban", "pos": ["kin"]}\n{"query": "bur", "pos": ["kin"]}\n')
    with pytest.raises(ValueError, match=r"^filter\.top_k=2 of a pool of 1 different passages keeps every pair"):
        run(world, asked(model_folder, path, tmp_path / "out", "filter.top_k=2"))
