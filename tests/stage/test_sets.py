"""stage=evaluate on several retrieval sets: figures of each, their mean, intervals, and what is kept of a run that stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

FIGURES = ["ndcg@10", "mrr@10", "recall@10", "recall@100", "map"]


def run(world, overrides: list[str]) -> dict[str, Any]:
    from ranks import run_stage

    return run_stage(
        world, ["stage=evaluate", "seed=0", "chunk_tokens=300", "data.query_max_len=32", "data.passage_max_len=32", *overrides]
    )


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, beir_folder) -> Path:
    """`plain`, and `forum` with the sets `one` and `two`: the same corpus, other queries in the split test."""
    root = tmp_path_factory.mktemp("sets")
    judged = (beir_folder / "qrels/train.tsv").read_text().splitlines()
    for name, rows in (("plain", judged[1:17]), ("forum/one", judged[1:7]), ("forum/two", judged[7:12])):
        (root / name / "qrels").mkdir(parents=True)
        for file in ("corpus.jsonl", "queries.jsonl"):
            (root / name / file).symlink_to(beir_folder / file)
        (root / name / "qrels/test.tsv").write_text("\n".join([judged[0], *rows]) + "\n")
    (root / "notes").mkdir()  # passed over by a pattern
    return root


@pytest.fixture(scope="module")
def together(world, model_folder, folders, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("together") / "out"
    return run(world, [f"model.path={model_folder}", f"data.path={folders}/*", f"output_dir={output}"]), output


def test_each_set_has_the_figures_that_it_has_alone_and_the_mean_counts_a_folder_of_sets_once(
    world, together, model_folder, folders, tmp_path
):
    found, _ = together
    assert list(found["sets"]) == ["forum/one", "forum/two", "plain"]
    alone = run(world, [f"model.path={model_folder}", f"data.path={folders}/forum/one", f"output_dir={tmp_path}/out"])
    assert list(alone["sets"]) == ["one"]
    for kind in ("metrics", "intervals", "queries", "passages"):
        assert alone["sets"]["one"][kind] == found["sets"]["forum/one"][kind] == alone[kind]
    one, two, plain = (each["metrics"]["ndcg@10"] for each in found["sets"].values())
    assert found["metrics"]["ndcg@10"] == pytest.approx(((one + two) / 2 + plain) / 2, abs=1e-12)
    assert (found["queries"], found["passages"]) == (6 + 5 + 16, 120)


def test_queries_have_the_figures_whose_means_and_intervals_are_told(together):
    from bgetrain.metric.significance import interval

    found, output = together
    rows = [json.loads(line) for line in (output / "queries.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["data", "query", *FIGURES]
    for name, figures in found["sets"].items():
        own = [row for row in rows if row["data"] == name]
        assert len({row["query"] for row in own}) == figures["queries"]
        for figure in FIGURES:
            values = [row[figure] for row in own]
            assert figures["metrics"][figure] == pytest.approx(sum(values) / len(values), abs=1e-12)
            assert figures["intervals"][figure] == interval(values, seed=0)
    low, high = found["intervals"]["ndcg@10"]
    assert low < found["metrics"]["ndcg@10"] < high


def test_two_ranks_give_the_figures_of_one(spawn, together, model_folder, folders, tmp_path):
    overrides = [f"model.path={model_folder}", f"data.path={folders}/*", f"output_dir={tmp_path}/out"]
    both = spawn(2, run, [*overrides, f"evaluate.compare={model_folder}"])
    assert both[1] == {}
    assert both[0]["sets"] == together[0]["sets"]
    assert both[0]["compare"]["mean"]["ndcg@10"]["p"] == 1  # with itself


def test_a_set_that_is_done_is_not_done_again_unless_the_model_has_changed(
    world, together, model_folder, folders, tmp_path, monkeypatch
):
    from bgetrain.stage import embed

    done = []
    ranked = embed.ranked
    monkeypatch.setattr(embed, "ranked", lambda *args: done.append(1) or ranked(*args))
    common = [f"data.path=[{folders}/forum,{folders}/plain]", f"output_dir={tmp_path}/out", "resume=force"]
    first = run(world, [f"model.path={model_folder}", *common])
    assert len(done) == 3
    again = run(world, [f"model.path={model_folder}", *common])
    assert len(done) == 3
    assert again["sets"] == first["sets"] == together[0]["sets"]
    newest = max((tmp_path / "out/sets").iterdir())
    newest.write_text(newest.read_text()[:50])  # a file that is not whole is no figure
    run(world, [f"model.path={model_folder}", *common])
    assert len(done) == 4
    run(world, [f"model.path={model_folder}", "model.pooling=mean", *common])
    assert len(done) == 7


def test_all_sets_are_opened_before_any_is_worked_on(world, model_folder, folders, tmp_path, monkeypatch):
    from bgetrain.stage import embed

    monkeypatch.setattr(embed, "embedded", None)
    for name in ("a", "b"):
        (tmp_path / name / "qrels").mkdir(parents=True)
        for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
            (tmp_path / name / file).write_text((folders / "plain" / file).read_text())
        (tmp_path / name / "qrels/test.tsv").write_text("q0\tp0\n")
    with pytest.raises(ValueError, match=rf"{tmp_path}/a/qrels/test.tsv:1: .* \| {tmp_path}/b/qrels/test.tsv:1: "):
        run(
            world,
            [f"model.path={model_folder}", f"data.path=[{folders}/plain,{tmp_path}/a,{tmp_path}/b]", f"output_dir={tmp_path}/o"],
        )


def test_a_run_and_its_model_are_compared_with_alike(world, together, model_folder, folders, tmp_path, capsys):
    from bgetrain.metric.significance import paired

    found, output = together
    common = ["model.pooling=mean", f"model.path={model_folder}", f"data.path={folders}/*"]
    ours = run(world, [*common, f"output_dir={tmp_path}/run", f"evaluate.compare={output}"])
    text = capsys.readouterr().out
    rows = {}
    for name, folder in (("ours", tmp_path / "run"), ("theirs", output)):
        lines = (json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines())
        rows[name] = [row["mrr@10"] for row in lines if row["data"] == "plain"]
    expected = paired(rows["ours"], rows["theirs"], seed=0)
    got = ours["compare"]["sets"]["plain"]["mrr@10"]
    assert (got["difference"], got["low"], got["high"], got["p"]) == expected
    assert got["ours"] - got["theirs"] == pytest.approx(expected.difference, abs=1e-12)
    mean = ours["compare"]["mean"]["ndcg@10"]
    assert mean["difference"] == pytest.approx(ours["metrics"]["ndcg@10"] - found["metrics"]["ndcg@10"], abs=1e-12)
    assert f"{mean['difference']:+.4f}" in text.splitlines()[-1]

    alike = run(world, [*common[1:], f"output_dir={tmp_path}/model", f"evaluate.compare={model_folder}"])
    assert {each["ndcg@10"]["p"] for each in alike["compare"]["sets"].values()} == {1.0}
    assert alike["compare"]["mean"]["map"]["difference"] == 0


def test_a_comparison_with_a_model_leaves_the_examples_of_its_own(world, model_folder, folders, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(model_folder, tmp_path / "other") / "model.safetensors"
    torch.manual_seed(1)
    weights = {name: each + 0.1 * torch.randn_like(each) for name, each in load_file(other).items()}
    save_file(weights, other, {"format": "pt"})
    common = ["model.pooling=mean", f"model.path={model_folder}", f"data.path={folders}/plain"]
    alone = run(world, [*common, f"output_dir={tmp_path}/alone"])
    beside = run(world, [*common, f"output_dir={tmp_path}/beside", f"evaluate.compare={other.parent}"])
    assert beside["compare"]["mean"]["map"]["theirs"] != pytest.approx(alone["metrics"]["map"])
    assert (tmp_path / "alone/examples.json").read_text() == (tmp_path / "beside/examples.json").read_text()


def test_what_cannot_be_compared_with_is_refused_before_anything_is_embedded(
    world, together, model_folder, beir_folder, folders, tmp_path, monkeypatch
):
    from bgetrain.stage import embed

    monkeypatch.setattr(embed, "embedded", None)
    output, common = together[1], [f"model.path={model_folder}", f"output_dir={tmp_path}/out"]
    with pytest.raises(ValueError, match=f"has figures of forum/one, forum/two, plain, not of {beir_folder.name}: evaluate both"):
        run(world, [*common, f"data.path={beir_folder}", f"evaluate.compare={output}"])
    (tmp_path / "plain").symlink_to(beir_folder)
    with pytest.raises(ValueError, match=r"16 queries of plain, this run 8, and 24 are in one alone, e.g. 'q0': evaluate both"):
        run(world, [*common, f"data.path={tmp_path}/plain", f"evaluate.compare={output}"])
    with pytest.raises(ValueError, match=r"evaluate.compare=nowhere: no local folder.*taken as a model"):
        run(world, [*common, f"data.path={beir_folder}", "evaluate.compare=nowhere"])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "queries.jsonl").write_text('{"data": "plain", "query": "q0"}\n')
    with pytest.raises(ValueError, match=r"queries.jsonl:1: must have data, query and ndcg@10, "):
        run(world, [*common, f"data.path={beir_folder}", f"evaluate.compare={damaged}"])
