"""stage=compare on folders as runs leave them."""

import json
from pathlib import Path

import pytest
import yaml

from bgetrain import cli

SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def made(
    folder: Path, stage: str, *, lines: int = 0, done: bool = True, scores: dict[str, list[float]] | None = None, **keys
) -> Path:
    """A folder of a run: its config, `lines` steps of 10, its result, and the figures of single queries of some data sets."""
    folder.mkdir(parents=True)
    config = {"stage": {"name": stage}, "seed": 1, "output_dir": str(folder), "resume": "auto", "save_every": 5, **keys}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    steps = [{"step": n, "loss": 2 / n, "progress_ratio": n / 10} for n in range(1, lines + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in steps))
    if done:
        figures = {"training": {"loss": 2 / lines, "steps": lines}} if lines else {"metrics": {"ndcg@10": sum(SCORES) / 8}}
        (folder / "result.json").write_text(json.dumps({"stage": stage, "status": "done", "finished_at": 0.0, **figures}))
    rows = [
        {"data": data, "query": f"q{number}", "ndcg@10": value}
        for data, values in (scores or {}).items()
        for number, value in enumerate(values)
    ]
    if scores is not None:
        (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(capsys, *folders: Path, page: Path) -> tuple[str, str]:
    """What the terminal and the page say."""
    assert cli.main(["stage=compare", f"runs=[{','.join(map(str, folders))}]", f"output_dir={page}"]) == 0
    return capsys.readouterr().out, (page / "compare.html").read_text("utf8")


def cells(told: str, first: str) -> list[str]:
    """The cells of the row that begins with `first`."""
    (row,) = [line.split() for line in told.splitlines() if line.split()[:1] == [first]]
    return row[1:]


def test_settings_that_differ_figures_and_curves_of_two_runs(tmp_path, capsys):
    one = made(tmp_path / "a/run", "finetune", lines=10, optim={"lr": 1e-5, "weight_decay": 0.01}, log_every=1)
    two = made(tmp_path / "b/run", "finetune", lines=5, optim={"lr": 2e-5, "weight_decay": 0.01}, log_every=2, guide_model=None)
    told, page = shown(capsys, one, two, page=tmp_path / "page")
    assert cells(told, "optim.lr") == ["1e-05", "2e-05"]
    assert cells(told, "guide_model") == ["(unset)", "null"]
    assert "optim.weight_decay" not in told
    assert "output_dir" not in told
    assert told.index("optim.lr") < told.index("log_every")  # what changes nothing of the result comes last
    assert cells(told, "loss") == ["0.2000", "0.4000", "+0.2000"]
    assert "finetune: 3 settings differ" in told
    assert "progress_ratio" not in told
    assert cells(told, "steps") == ["10", "5", "-5"]
    assert "a/run" in told
    for text in ("a/run", "b/run", "optim.lr", "2e-05", "<svg"):
        assert text in page
    assert "significance" not in told  # which is of evaluations


def test_the_test_of_significance_is_on_the_queries_of_both(tmp_path, capsys):
    from bgetrain.metric.significance import paired

    better = [value + 0.05 for value in SCORES]
    one = made(tmp_path / "one", "evaluate", scores={"dev": SCORES, "lost": SCORES})
    two = made(tmp_path / "two", "evaluate", scores={"dev": better[:6], "new": SCORES})
    told, page = shown(capsys, one, two, page=tmp_path / "page")
    test = paired(better[:6], SCORES[:6], seed=42)
    expected = ["dev", "ndcg@10", "6", "0.3500", "0.4000", "+0.0500", "+0.0500", "to", "+0.0500", f"{test.p:.4f}"]
    assert cells(told, "two") == expected
    assert test.p < 0.05
    assert "dev: 8 queries of one and 6 of two, tested on the 6 that both have" in told
    assert "lost: 8 queries of one and 0 of two, none in both: not tested" in told
    assert "new: 0 queries of one and 8 of two, none in both: not tested" in told
    assert f"{test.p:.4f}" in page


def test_an_evaluation_without_figures_of_single_queries_is_said(tmp_path, capsys):
    one, two = made(tmp_path / "one", "evaluate", scores={"dev": SCORES}), made(tmp_path / "two", "evaluate")
    told, _ = shown(capsys, one, two, page=tmp_path / "page")
    assert "two has no queries.jsonl" in told
    assert cells(told, "ndcg@10") == ["0.4500", "0.4500", "0.0000"]


def test_three_runs_stand_side_by_side_and_one_that_is_not_done_has_its_last_step(tmp_path, capsys):
    runs = [
        made(tmp_path / name, "pairs", lines=lines, seed_of=name, done=lines > 4)
        for name, lines in {"a": 10, "b": 5, "c": 4}.items()
    ]
    runs.append(made(tmp_path / "d", "pairs", done=False, seed_of="d"))
    told, page = shown(capsys, *runs, page=tmp_path / "page")
    assert cells(told, "seed_of") == ["a", "b", "c", "d"]
    assert cells(told, "loss") == ["0.2000", "0.4000", "0.5000", "-"]
    assert "c is not finished: its figures are those of step 4 (40 %)" in told
    assert "d is not finished and has logged no step: it has no figures" in told
    assert "c is not finished" in page


def test_a_page_shows_names_as_text(tmp_path, capsys):
    one, two = (made(tmp_path / name, "pairs", lines=3, note="<script>x</script>" * number) for number, name in enumerate("ab"))
    _, page = shown(capsys, one, two, page=tmp_path / "page")
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_what_cannot_be_compared_is_one_line(tmp_path, capsys):
    one = made(tmp_path / "one", "pairs", lines=3)
    other = made(tmp_path / "other", "finetune", lines=3)
    made(tmp_path / "recipe/pairs", "pairs", lines=3)
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = made(tmp_path / "broken", "pairs", lines=3)
    (broken / "queries.jsonl").write_text('{"data": "dev"}\n')
    (one / "queries.jsonl").write_text('{"data": "dev", "query": "q", "ndcg@10": 1}\n')
    cases = {
        f"{one}": "two folders of runs or more",
        f"{one},{tmp_path}/gone": f"there is no folder {tmp_path}/gone",
        f"{one},{empty}": f"{empty} is no folder of a run",
        f"{one},{tmp_path}/recipe": f"did you mean {tmp_path}/recipe/pairs?",
        f"{one},{tmp_path}/x/../one": "is there twice",
        f"{one},{other}": f"{one} is of stage=pairs, {other} of stage=finetune",
        f"{one},{broken}": f"{broken}/queries.jsonl:1: is not a query",
    }
    (tmp_path / "x").mkdir()
    for runs, words in cases.items():
        assert cli.main(["stage=compare", f"runs=[{runs}]", f"output_dir={tmp_path}/page"]) == 2
        said = capsys.readouterr().err
        assert words in said, said
        assert said.count("\n") == 1
    assert cli.main(["stage=compare"]) == 2
    assert "runs is missing: add runs=VALUE" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_page_that_cannot_be_written_is_one_line(tmp_path, capsys, where):
    runs = [made(tmp_path / name, "pairs", lines=2) for name in "ab"]
    (tmp_path / "file").write_text("")
    assert cli.main(["stage=compare", f"runs=[{runs[0]},{runs[1]}]", f"output_dir={tmp_path / where}"]) == 2
    assert "compare.html cannot be written" in capsys.readouterr().err
