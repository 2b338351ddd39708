"""The output folder: whose it is, and whether its run is done."""

import json
import os
from pathlib import Path

import pytest
import yaml

from bgetrain import output


def settings(folder, **changes) -> dict:
    cfg = {"output_dir": str(folder), "seed": 1, "resume": "auto", "num_processes": None, "chunk_tokens": 10,
           "engine": {"gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}, "optim": {"lr": 0.1},
           "data": {"files": ["a"], "num_workers": 1}, "model": {"path": "m", "gradient_checkpointing": False}}  # fmt: skip
    return {**cfg, **changes}


def begun(folder: Path, **changes) -> dict:
    """A folder with a run that has saved something."""
    cfg = settings(folder, **changes)
    assert output.claim(cfg) == "new"
    (folder / "checkpoints" / "step_3").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return cfg


def test_a_new_folder_gets_the_config_and_the_versions(tmp_path):
    cfg = settings(tmp_path / "a" / "b")
    assert output.standing(cfg) == "new"
    assert not (tmp_path / "a").exists(), "standing only looks"
    assert output.claim(cfg) == "new"
    assert yaml.safe_load((tmp_path / "a/b/config.yaml").read_text()) == cfg
    facts = json.loads((tmp_path / "a/b/provenance.json").read_text())
    assert {"python", "platform", "packages", "git"} <= set(facts)
    assert "torch" in facts["packages"]


def test_an_unfinished_run_of_the_same_config_is_resumed(tmp_path):
    assert output.claim(begun(tmp_path)) == "resume"
    assert (tmp_path / "checkpoints" / "step_3").is_dir()


def test_a_finished_run_is_done_and_stays_as_it_is(tmp_path):
    cfg = begun(tmp_path)
    output.finish(str(tmp_path), "finetune", {"steps": 3})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert output.claim(cfg) == "done"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert {"stage": "finetune", "status": "done", "steps": 3}.items() <= output.result(str(tmp_path)).items()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 2}, "seed=1, now 2"),
        ({"optim": {"lr": 0.2}}, "optim.lr=0.1, now 0.2"),
        ({"loss": {"temperature": 1}}, "loss=(unset), now"),
        ({"data": {"files": ["b"], "num_workers": 1}}, "data.files=['a'], now ['b']"),
        ({"engine": {"gradient_clipping": 2.0, "zero_optimization": {"stage": 1}}}, "engine.gradient_clipping=1.0, now 2.0"),
    ],
)
def test_a_run_of_another_config_is_refused_naming_what_differs(tmp_path, changes, said):
    begun(tmp_path)
    for look in (output.standing, output.claim):
        with pytest.raises(ValueError, match=rf"^output_dir={tmp_path} belongs to a run with ") as caught:
            look(settings(tmp_path, **changes))
        assert said in str(caught.value)
        assert "resume=never" in str(caught.value)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_processes": 4},
        {"chunk_tokens": 99},
        {"engine": {"gradient_clipping": 1.0, "zero_optimization": {"stage": 3}}},
        {"model": {"path": "m", "gradient_checkpointing": True}},
        {"data": {"files": ["a"], "num_workers": 8}},
        {"cluster": {"port": 1}},
    ],
)
def test_a_run_goes_on_under_other_values_of_keys_that_decide_no_result(tmp_path, changes):
    begun(tmp_path)
    assert output.claim(settings(tmp_path, **changes)) == "resume"


def test_a_run_that_had_nothing_to_lose_gives_way_to_another_config(tmp_path):
    """Who mends a wrong path types the same output_dir again."""
    output.claim(settings(tmp_path))
    (tmp_path / "metrics.jsonl").touch()  # opened before the stage finds the fault
    assert output.claim(settings(tmp_path, seed=2)) == "new"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 2


def test_resume_never_starts_anew_and_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    begun(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("model", "tensorboard", "wandb"):
        (tmp_path / name).mkdir()
    (tmp_path / "train.jsonl").write_text("{}")
    output.finish(str(tmp_path), "mine", {})
    again = settings(tmp_path, seed=2, resume="never")
    assert output.standing(again) == "new"
    assert (tmp_path / "result.json").exists(), "standing only looks"
    assert output.claim(again) == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "notes.txt", "provenance.json"]


def test_resume_never_does_not_touch_a_folder_that_is_not_a_runs(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"holds files that are not a run's \(model\)"):
        output.claim(settings(tmp_path, resume="never"))
    assert (tmp_path / "model").is_dir()


def test_resume_force_goes_on_under_new_values_and_is_not_done_before_it_is(tmp_path):
    begun(tmp_path)
    output.finish(str(tmp_path), "finetune", {})
    forced = settings(tmp_path, seed=2, resume="force")
    assert output.claim(forced) == "resume"
    assert (tmp_path / "checkpoints" / "step_3").is_dir()
    assert output.standing(settings(tmp_path, seed=2)) == "resume", "the old result.json must not stand for the new run"


def test_resume_force_under_the_same_values_of_a_finished_run_is_done(tmp_path):
    begun(tmp_path)
    output.finish(str(tmp_path), "finetune", {})
    assert output.claim(settings(tmp_path, resume="force")) == "done"


def test_files_of_others_are_refused_unless_forced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds files that are not a run's \(thesis\.tex\): choose another folder"):
        output.claim(settings(tmp_path))
    (tmp_path / "thesis.tex").rename(tmp_path / ".hidden")
    assert output.claim(settings(tmp_path)) == "new"


def test_what_a_job_leaves_in_a_folder_is_nobody_elses_and_stays(tmp_path):
    names = ("job.sbatch", "job.json", "jobs.txt", "slurm-12.out", "slurm-12_3.out", "failures-12.txt")
    for name in names:
        (tmp_path / name).touch()
    assert output.claim(settings(tmp_path)) == "new"
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert output.claim(settings(tmp_path, resume="never")) == "new"
    assert all((tmp_path / name).exists() for name in names)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=rf"^output_dir={folder}: {tmp_path}/file is a file, not a folder$"):
            output.standing(settings(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"no permission to write in"):
        output.standing(settings(tmp_path / "new"))


def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match=r"^output_dir=/proc/bgetrain: cannot write here: "):
        output.claim(settings("/proc/bgetrain"))


@pytest.mark.parametrize(("text", "said"), [("a: [", "cannot be read as YAML"), ("- 1\n", "is not a run's config")])
def test_a_damaged_config_is_said_in_one_line(tmp_path, text, said):
    begun(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        output.standing(settings(tmp_path))


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text("old")

    def break_down(*_arguments, **_names):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", break_down)
    with pytest.raises(OSError, match="disk full"):
        output.write(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("resume", ["auto", "never", "force"])
def test_a_folder_whose_config_yaml_is_somebody_elses_is_left_alone(tmp_path, resume):
    (tmp_path / "config.yaml").write_text("theirs: true\n")
    (tmp_path / "wandb").mkdir()
    with pytest.raises(ValueError, match="is not a run's config"):
        output.claim(settings(tmp_path, resume=resume))
    assert (tmp_path / "wandb").is_dir()
    assert (tmp_path / "config.yaml").read_text() == "theirs: true\n"


def test_data_that_changed_since_the_run_began_is_refused_unless_forced(tmp_path):
    cfg = begun(tmp_path / "run")
    output.add_fingerprints(cfg["output_dir"], "data", {"a": {"bytes": 1}}, "auto")
    assert output.claim(cfg) == "resume"
    output.add_fingerprints(cfg["output_dir"], "data", {"a": {"bytes": 1}}, "auto")
    with pytest.raises(ValueError, match="a has changed since the run"):
        output.add_fingerprints(cfg["output_dir"], "data", {"a": {"bytes": 2}}, "auto")
    output.add_fingerprints(cfg["output_dir"], "data", {"a": {"bytes": 2}}, "force")


# --- going on under other values --------------------------------------------------------------------------------------


def told(capsys, folder, **changes) -> str:
    """What a run says that goes on under `changes`."""
    capsys.readouterr()
    assert output.claim(settings(folder, **changes)) == "resume"
    return capsys.readouterr().out


def test_a_run_that_goes_on_says_once_which_free_keys_changed(tmp_path, capsys):
    begun(tmp_path, save_every=10)
    engine = {"gradient_clipping": 1.0, "zero_optimization": {"stage": 3}}
    assert told(capsys, tmp_path, save_every=5, engine=engine) == (
        "goes on under engine.zero_optimization.stage=3 (was 1), save_every=5 (was 10)\n"
    )
    assert told(capsys, tmp_path, save_every=5, engine=engine) == "", "it is what the folder says now"
    assert output.standing(settings(tmp_path, save_every=6)) == "resume"
    assert capsys.readouterr().out == "", "to look is not to go on"


def test_a_forced_run_says_which_keys_that_bind_changed_before_those_that_are_free(tmp_path, capsys):
    begun(tmp_path, save_every=10)
    said = told(capsys, tmp_path, save_every=5, seed=2, resume="force", model={"path": "m", "gradient_checkpointing": True})
    words = "seed=2 (was 1), model.gradient_checkpointing=true (was false), save_every=5 (was 10)"
    assert said == f"resume=force goes on under {words}\n"


def test_how_a_run_is_saved_and_scored_is_free_but_what_it_is_scored_on_is_not(tmp_path, capsys):
    scored = {"every": 10, "held_out": 0, "metric": "loss"}
    begun(tmp_path, save_every=10, keep=2, save_async=True, on_nonfinite="stop", evaluate=scored)
    changes = {"save_every": 10, "keep": 3, "save_async": False, "on_nonfinite": "skip(2)", "evaluate": {**scored, "every": 5}}
    assert told(capsys, tmp_path, **changes) == (
        "goes on under keep=3 (was 2), save_async=false (was true), on_nonfinite=skip(2) (was stop), evaluate.every=5 (was 10)\n"
    )
    with pytest.raises(ValueError, match=r"belongs to a run with evaluate\.held_out=0, now 100: "):
        output.claim(settings(tmp_path, **{**changes, "evaluate": {**scored, "held_out": 100}}))


def test_what_decides_the_result_of_an_evaluation_binds(tmp_path):
    begun(tmp_path, evaluate={"bm25": False})
    with pytest.raises(ValueError, match=r"belongs to a run with evaluate\.bm25=false, now true: "):
        output.claim(settings(tmp_path, evaluate={"bm25": True}))


def test_a_refusal_names_four_keys_and_cuts_long_values(tmp_path):
    begun(tmp_path, data={"files": [f"part-{number}" for number in range(100)], "num_workers": 1})
    with pytest.raises(ValueError, match="belongs to a run with") as said:
        output.claim(settings(tmp_path, seed=2, a=1, b=2, c=3, d=4))
    assert str(said.value).count(", now ") == 4
    assert " ...: choose another output_dir" in str(said.value)
    assert len(str(said.value)) < 600


def test_secrets_are_not_saved_and_do_not_count_as_changes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    secrets = {"api_key": "first", "url": "https://me:word@host/x", "name": "run-0123456789abcdef"}
    begun(tmp_path, tracker=secrets)
    text = (tmp_path / "config.yaml").read_text()
    assert not [each for each in ("first", "me:word", "0123456789abcdef") if each in text]
    assert "https://***@host/x" in text
    assert told(capsys, tmp_path, tracker={**secrets, "api_key": "second", "url": "https://me:other@host/x"}) == ""
    with pytest.raises(ValueError, match=r"tracker\.url=https://\*\*\*@host/x, now https://\*\*\*@host/y: "):
        output.claim(settings(tmp_path, tracker={**secrets, "url": "https://me:word@host/y"}))


def test_a_stage_that_always_runs_anew_never_clears_what_another_has_made(tmp_path):
    """stage=doctor and stage=check say resume=never by themselves."""
    cfg = begun(tmp_path) | {"stage": {"name": "finetune"}}
    output.write(tmp_path / "config.yaml", yaml.safe_dump(cfg))
    with pytest.raises(ValueError, match=r"holds what stage=finetune has made: choose another output_dir"):
        output.standing(cfg | {"stage": {"name": "doctor"}, "resume": "never"})
    assert output.standing(cfg | {"resume": "never"}) == "new"


@pytest.mark.parametrize(("before", "now", "refused"), [(None, 100, True), (100, None, True), (100, 50, False)])
def test_evaluating_or_not_binds_a_run_that_holds_rows_out(before, now, refused, tmp_path):
    base = begun(tmp_path) | {"save_every": 5}
    output.write(tmp_path / "config.yaml", yaml.safe_dump(base | {"evaluate": {"every": before, "held_out": 4}}))
    again = base | {"evaluate": {"every": now, "held_out": 4}}
    if refused:
        with pytest.raises(ValueError, match=r"evaluate\.held_out="):
            output.standing(again)
    else:
        assert output.standing(again) == "resume"
