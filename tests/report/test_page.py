"""The pages of runs and recipes: all that was logged is on them, nothing else is, and a fault of theirs is no fault of a run."""

import importlib
import json
import math
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from pages import PAIRS, Parsed, line, made, shown

from bgetrain import card, cli, output, steps
from bgetrain.report import ladder, plots, run, series
from bgetrain.report.leave import leave

NASTY = '<script>alert("1")</script> & <b>"quoted"</b>'


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe of four steps: pairs, its evaluation, finetune from it, which is not finished, and one that has not begun."""
    folder = tmp_path_factory.mktemp("outputs") / "recipe of mine"
    folder.mkdir()
    names = {"pairs": [], "evaluate-pairs": ["pairs"], "finetune": ["pairs"], "evaluate-finetune": ["finetune"]}
    steps.note(str(folder), "small", [steps.Step(name, [], f"{folder}/{name}", needs) for name, needs in names.items()], {})
    lines = [
        line(step, 10, **({"held_out_loss": abs(step - 4) + 0.5, "ndcg@10": 0.3} if step % 2 == 0 else {}))
        for step in range(1, 11)
    ]
    training = ["stage=pairs", "data=synthetic", "model=tiny", "optim.lr=3e-4"]
    made(folder / "pairs", training, lines, {"steps": 10, "training": {"loss": 0.2, "best_step": 4.0}})
    (folder / "pairs" / "model").mkdir()
    (folder / "pairs" / "model" / "config.json").write_text("{}")
    metrics = {"ndcg@10": 0.4321, "mrr@10": 0.4, "recall@100": 0.9}
    evaluate = ["stage=evaluate", "data=beir", "data.path=x", f'model.path="{folder}/pairs/model"']
    made(folder / "evaluate-pairs", evaluate, [], {"metrics": metrics, "bm25": {**metrics, "ndcg@10": 0.2468}})
    lines = [line(step, 10, accuracy=0.5, masking_share=0.1, **{"loss/a": 1.0}) for step in range(1, 6)]
    finetune = ["stage=finetune", "data=synthetic", f'model.path="{folder}/pairs/model"']
    made(folder / "finetune", finetune, lines, None)
    for name in ("pairs", "evaluate-pairs", "finetune"):
        run.write(folder / name)
    ladder.write(folder)
    return folder


def test_every_figure_that_was_logged_is_in_one_picture():
    lines = [line(1, 2, encoder_loss=1.0, held_out_loss=1.0, map=0.2, evaluate_seconds=1.0, save_gb=2.0, **{"loss/a b": 1.0})]
    drawn = [name for picture in series.pictures(lines) for name in picture.names]
    assert sorted(drawn) == sorted(set(lines[0]) - {"step", "progress_ratio", "seconds_left"})


def test_a_page_shows_status_settings_curves_and_versions(recipe):
    page = Parsed((recipe / "pairs/report.html").read_text("utf8"))
    for what in ("pairs: pairs done", "1 min 30 s time", "2 (cpu)", "optim.lr 0.0003", "torch 2.13.0", "Learning rate",
                 "Gradient norm", "Queries or texts per second",
                 "Tokens per second", "Padding (% of all tokens)", "Memory (GB", "best: step 4",
                 "Loss of held-out data", "Retrieval: nDCG", "bgetrain stage=pairs model=tiny data=synthetic"):  # fmt: skip
        assert what in page.text, what
    assert "optim.weight_decay=" not in page.text  # which is as usual
    page = Parsed((recipe / "finetune/report.html").read_text("utf8"))
    for what in ("this run was not finished", "5 of 10 steps", "Accuracy (%)", "Share of the step's time (%)", "Loss, by part"):
        assert what in page.text, what


def test_all_links_of_a_recipe_s_pages_lead_to_files(recipe):
    for page in sorted(recipe.rglob("report.html")):
        links = Parsed(page.read_text("utf8")).links
        assert links, page
        for link in links:
            assert (page.parent / unquote(link)).is_file(), f"{page}: {link}"
    assert "../pairs/report.html" in Parsed((recipe / "finetune/report.html").read_text()).links  # the parent
    assert "../report.html" in Parsed((recipe / "finetune/report.html").read_text()).links  # the recipe


def test_a_recipe_s_page_has_its_ladder_and_where_each_step_stands(recipe):
    page = Parsed((recipe / "report.html").read_text("utf8"))
    for what in ("small unfinished", "2 of 4", "0.4321", "BM25", "0.2468", "evaluate-finetune not begun", "finetune unfinished",
                 "reads finetune"):  # fmt: skip
        assert what in page.text, what
    assert page.text.count("reads pairs") == 2
    assert page.tags.count("svg") == 1


def test_a_page_is_one_file_without_scripts_or_addresses(recipe):
    for page in sorted(recipe.rglob("report.html")):
        text = page.read_text("utf8")
        parsed = Parsed(text)
        assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
        assert "http" not in text
        assert len(text) < 500_000
        for name in ("src", "href"):
            assert all(not str(value).startswith(("//", "/")) for each, value in parsed.attributes if each == name)


def test_the_colours_of_pictures_are_the_page_s_in_light_and_dark(recipe):
    text = (recipe / "pairs" / "report.html").read_text("utf8")
    pictures = text[text.index("<svg") : text.rindex("</svg>")]
    assert "prefers-color-scheme: dark" in text
    drawn = {part.split(")")[0] for part in pictures.split("var(")[1:]}
    assert {"--one", "--soft", "--line", "--good"} <= drawn
    light, dark = text.split("prefers-color-scheme: dark", 1)
    assert all(f"{name}:" in light and f"{name}:" in dark for name in drawn)
    assert "#000" not in pictures


def test_a_figure_that_is_not_finite_leaves_a_gap_and_is_told(tmp_path):
    lines = [line(step, 9, loss=None if step in (4, 5) else 1.0) for step in range(1, 10)]
    curve = series.curve(lines, "loss")
    assert np.flatnonzero(np.isnan(curve.values)).tolist() == [3, 4]
    assert curve.broken == 2
    page = shown(made(tmp_path / "run", PAIRS, lines, None))
    assert "loss: 2 figures not finite, shown as a gap" in page.text
    svg = str(plots.curves([curve], name="x", label="x", best=None))
    path = next(part for part in svg.split('d="') if "var(--one)" in part.split("/>")[0])
    assert path.split('"')[0].count("M") == 2  # the line is taken up again after the gap


def test_a_score_that_is_not_a_number_is_never_the_best():
    lines = [{"step": step, "ndcg@10": score} for step, score in enumerate((math.nan, 0.1, 0.3, math.nan, 0.2))]
    assert series.best_step(lines, {}, None) == 2
    assert series.best_step(lines[:1], {}, None) is None


def test_long_runs_are_thinned_to_means_with_a_band_that_holds_every_figure():
    draw = np.random.default_rng(0)
    values = draw.normal(size=5000)
    lines = [{"step": step + 1, "loss": value} for step, value in enumerate(values)]
    curve = series.curve(lines, "loss")
    buckets = [values[start : start + curve.lines] for start in range(0, 5000, curve.lines)]
    assert len(curve.values) == len(buckets) <= series.POINTS
    np.testing.assert_allclose(curve.values, [bucket.mean() for bucket in buckets], rtol=1e-12)
    np.testing.assert_array_equal(curve.low, [bucket.min() for bucket in buckets])
    np.testing.assert_array_equal(curve.high, [bucket.max() for bucket in buckets])
    assert curve.last == values[-1]
    assert curve.smooth is not None
    assert series.curve([{"step": step, "lr": 1e-5 * step} for step in range(300)], "lr").smooth is None
    half = curve.width // 2
    expected = [np.mean(curve.values[max(0, place - half) : place + half + 1]) for place in range(len(curve.values))]
    np.testing.assert_allclose(curve.smooth, expected, rtol=1e-9)


def test_texts_and_names_are_escaped(tmp_path):
    logged = line(1, 1, **{f"loss/{NASTY}$a$": 1.0})
    folder = made(tmp_path / "run", PAIRS, [logged], None)
    counts = [0] * 49 + [5]
    similarity = {"edges": np.linspace(-1, 1, 51).tolist(), "series": {NASTY: {"positive": counts, "negative": counts}}}
    pair = {"query": NASTY, "positive": NASTY, "negative": NASTY, "positive_score": 0.5, "negative_score": 0.6}
    worst = {"query": NASTY, "positive": NASTY, "rank": None, "ndcg@10": 0.0,
             "found": [{"text": NASTY, "score": 0.9, "relevant": False}]}  # fmt: skip
    found = {"of": NASTY, "similarity": similarity, "hardest_negatives": [pair] * 5, "worst_queries": [worst]}
    (folder / "examples.json").write_text(json.dumps(found))
    page = shown(folder)
    assert "script" not in page.tags
    assert page.text.count(" ".join(NASTY.split())) >= 5 * 3 + 3


def test_similarities_negatives_and_queries_are_shown_with_their_figures(tmp_path):
    folder = made(tmp_path / "run", PAIRS, [], None)
    edges = np.linspace(-1, 1, 51).tolist()
    one = {"positive": [0] * 40 + [4] * 10, "negative": [0] * 30 + [2] * 20}
    pair = {"query": "q", "positive": "right one", "negative": "wrong one", "positive_score": 0.5, "negative_score": 0.625}
    worst = {"query": "asked", "positive": "wanted", "rank": 77, "ndcg@10": 0.125, "found": []}
    found = {
        "of": "8 training rows",
        "similarity": {"edges": edges, "series": {"before": one, "after": one}},
        "means": {"before": {"positive": 0.71, "negative": 0.65}, "after": {"positive": 0.8, "negative": 0.1}},
        "hardest_negatives": [pair],
        "worst_queries": [worst],
    }
    (folder / "examples.json").write_text(json.dumps(found))
    text = shown(folder).text
    for what in ("Before training", "After training", "positive mean 0.710", "negative mean 0.100", "negative 0.625 wrong one",
                 "rank 77, nDCG@10 0.125", "wanted", "of 8 training rows"):  # fmt: skip
        assert what in text, what
    assert "of the last step" not in text
    (folder / "result.json").write_text(json.dumps({"status": "done", "steps": 10, "training": {"best_step": 4.0}}))
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    for model, is_told in (("best", True), ("last", False)):
        cfg["evaluate"] |= {"every": 2, "model": model}
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
        assert ("of the last step, 10; model/ is step 4." in shown(folder).text) == is_told
    for broken in ({"similarity": {"edges": [1], "series": 3}}, {"hardest_negatives": [1, {}], "worst_queries": "x"}, []):
        (folder / "examples.json").write_text(json.dumps(broken))
        assert "Hardest" not in shown(folder).text


def test_the_histogram_s_bars_are_shares():
    svg = str(plots.histogram([0, 0.5, 1], {"a": [1, 3]}, span=(0, 1), name="x", label="x", axis="y"))
    assert ">80<" in svg.replace("\n", "") or ">60<" in svg.replace("\n", "")  # the axis reaches to 75 %
    assert ">100<" not in svg


def test_a_run_that_was_cut_off_or_damaged_still_has_a_page(tmp_path):
    folder = made(tmp_path / "run", PAIRS, [line(1, 5)], None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    (folder / "provenance.json").write_text("{")
    (folder / "examples.json").write_text("[")
    assert "1 of 5 steps" in shown(folder).text
    (folder / "metrics.jsonl").unlink()
    assert "unfinished" in shown(folder).text


def test_what_goes_wrong_with_a_page_is_one_line_and_no_failed_run(tmp_path, capsys, monkeypatch):
    folder = made(tmp_path / "run", PAIRS, [line(1, 1)], {})
    leave(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    monkeypatch.setattr(output, "write", lambda path, text: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    leave(folder)
    first, second = capsys.readouterr().err.splitlines()
    assert (
        first == f"WARNING: {tmp_path}/gone/report.html was not written (FileNotFoundError: {tmp_path}/gone is no longer there)"
    )
    assert second == f"WARNING: {folder}/report.html was not written (OSError: [Errno 28] No space left on device)"


def test_a_module_that_cannot_be_imported_ends_no_finished_run(tmp_path, capsys, monkeypatch):
    folder = made(tmp_path / "run", PAIRS, [line(1, 1)], {})
    for module in ("bgetrain.report.run", "bgetrain.card"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delattr(importlib.import_module(module.rpartition(".")[0]), module.rpartition(".")[2], raising=False)
    leave(folder)
    assert [each.split(" was not")[0] for each in capsys.readouterr().err.splitlines()] == [
        f"WARNING: {folder}/report.html", f"WARNING: {folder}/model/README.md",
    ]  # fmt: skip


def test_stage_report_writes_the_pages_of_what_a_folder_holds(recipe, capsys):
    pages = sorted(recipe.rglob("report.html"))
    for page in pages:
        page.unlink()
    assert cli.main(["stage=report", f"output_dir={recipe.parent}"]) == 0
    assert sorted(map(Path, capsys.readouterr().out.split("\n")[:-1])) == pages
    assert all(page.is_file() for page in pages)
    assert cli.main(["stage=report", f"output_dir={recipe}/none"]) == 2
    (recipe / "empty").mkdir()
    assert cli.main(["stage=report", f"output_dir={recipe}/empty"]) == 2
    (recipe / "empty").rmdir()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_stage_report_passes_over_what_is_no_run_s_and_writes_cards_again(tmp_path, capsys, monkeypatch):
    good = made(tmp_path / "z", PAIRS, [line(1, 1)], {})
    made(tmp_path / ".hydra", PAIRS, [], None)  # hidden
    for name, text in (("another", "db: mysql"), ("broken", "a: [")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    (tmp_path / "broken" / "provenance.json").write_text("{}")
    bad = made(tmp_path / "bad", PAIRS, [], None)
    (bad / "report.html").mkdir()  # where the page should be
    cards = []
    monkeypatch.setattr(card, "write", cards.append)
    assert cli.main(["stage=report", f"output_dir={tmp_path}"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [f"{good}/report.html"]
    first, second = told.err.splitlines()
    assert first.startswith(f"WARNING: {bad}/report.html was not written")
    assert second == f"WARNING: {tmp_path}/broken/config.yaml: cannot be read: this is no folder of a run"
    assert cards == [bad, good]


def test_a_command_s_run_leaves_its_page_and_says_where_it_ran(model_folder, beir_folder, tmp_path):
    overrides = ["stage=evaluate", "data=beir", f"data.path={beir_folder}", f"model.path={model_folder}", "data.split=test"]
    limits = ["data.query_max_len=16", "data.passage_max_len=32", "num_processes=1", f"output_dir={tmp_path}/out"]
    assert cli.main([*overrides, *limits]) == 0
    page = Parsed((tmp_path / "out/report.html").read_text("utf8"))
    figure = json.loads((tmp_path / "out/result.json").read_text())["metrics"]["ndcg@10"]
    assert f"{figure:.4f} ndcg@10" in page.text
    assert "1 (cpu)" in page.text
    (session,) = json.loads((tmp_path / "out/provenance.json").read_text())["sessions"]
    assert session["ranks"] == 1
    assert math.isfinite(session["began_at"])


def test_the_page_of_stage_check_is_left_as_it_is(tmp_path):
    folder = made(tmp_path / "run", ["stage=check", "data=jsonl", "data.files=[x]"], [], {})
    (folder / "report.html").write_text("its own")
    run.write(folder)
    assert (folder / "report.html").read_text() == "its own"
