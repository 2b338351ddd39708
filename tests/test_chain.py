"""A recipe as jobs: which are submitted, after which others, and what a second command does; by a stand-in for SLURM."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from queues import Queue

from bgetrain import chain, cli, output, recipe, steps

# `left` and `right` read `root`; `last` reads both; `alone` reads nothing
DIAMOND = """
root: [stage=tokenizer, data=text, "data.files=[{texts}]", model=tiny, cluster.nodes=1]
alone: [stage=tokenizer, data=text, "data.files=[{texts}]", model=tiny]
left: [stage=evaluate, data=beir, data.path=x, "model.path=${{root}}/model", cluster.nodes=2]
right: [stage=evaluate, data=beir, data.path=x, "model.path=${{root}}/model", "cluster.environment={{A: b}}"]
last: [stage=finetune, "data=jsonl", "data.files=[${{left}}/train.jsonl, ${{right}}/train.jsonl]", "model.path=x"]
"""
SLURM = ("cluster=slurm", "cluster.gpus_per_node=0")


@pytest.fixture
def queue(tmp_path, monkeypatch) -> Queue:
    made = Queue(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def diamond(tmp_path) -> list[str]:
    """The arguments that run the recipe into `out`, the same in every test: a config is then composed once."""
    (tmp_path / "diamond.yaml").write_text(DIAMOND.format(texts="texts.jsonl"))
    return ["recipe=diamond.yaml", "output_dir=out"]


def finish(folder: Path, step: str, **figures) -> None:
    """Leaves what a step that is done leaves, under the config that its recipe has for it."""
    made = next(each for each in recipe.plan("diamond.yaml", "out", list(SLURM)) if each.name == step)
    assert Path(made.output_dir).absolute() == folder / step
    output.claim(chain.plain(made))
    output.finish(made.output_dir, "any", figures)


def dependencies(queue: Queue) -> dict[str, set[str]]:
    """Step -> the numbers of the jobs that it waits for."""
    found = {}
    for line in queue.submitted:
        words = line.split()
        after = [each for each in words if each.startswith("--dependency=")]
        found[Path(words[-1]).parent.name] = set(after[0].removeprefix("--dependency=afterok:").split(":")) if after else set()
        assert ("--kill-on-invalid-dep=yes" in words) == bool(after)
    return found


def test_each_step_waits_for_those_whose_folders_it_reads_and_for_no_others(queue, diamond, tmp_path, capsys):
    assert cli.main([*diamond, *SLURM]) == 0
    assert dependencies(queue) == {"root": set(), "alone": set(), "left": {"101"}, "right": {"101"}, "last": {"103", "104"}}
    said = capsys.readouterr().out
    assert "[3/5] left: job 103 after 101, 2 nodes of 1 rank\n" in said
    assert said.endswith("to cancel them: scancel 101 102 103 104 105\n")
    nodes = {
        step: re.search(r"--nodes=(\d)", (tmp_path / "out" / step / "job.sbatch").read_text())[1] for step in ("root", "left")
    }
    assert nodes == {"root": "1", "left": "2"}


def test_a_second_command_submits_only_what_is_neither_done_nor_in_the_queue(queue, diamond, tmp_path, capsys):
    assert cli.main([*diamond, *SLURM]) == 0
    finish(tmp_path / "out", "root")
    queue.show(
        "101|COMPLETED|0|0:00|None",
        "102|FAILED|0|0:00|NonZeroExitCode",
        "103|RUNNING|0|1:00|None",
        "104|CANCELLED|0|0:00|None",
        "105|CANCELLED|0|0:00|DependencyNeverSatisfied",
    )
    before = len(queue.submitted)
    assert cli.main([*diamond, *SLURM]) == 0
    again = queue.submitted[before:]
    assert [Path(each.split()[-1]).parent.name for each in again] == ["alone", "right", "last"]
    assert "--dependency" not in again[0] + again[1]
    assert "--dependency=afterok:103:107 " in again[2]
    said = capsys.readouterr().out
    assert "[1/5] root: already done\n" in said
    assert "[3/5] left: job 103 is there already, running\n" in said


def test_a_refusal_in_mid_chain_names_what_is_submitted_and_the_same_command_goes_on(queue, diamond, capsys):
    queue.refuse(103)
    assert cli.main([*diamond, *SLURM]) == 2
    said = capsys.readouterr().err
    assert "step left: " in said
    assert "Invalid qos" in said
    assert said.endswith("; submitted before it, and kept: root (job 101), alone (job 102); the same command goes on\n")
    queue.refuse(0)
    assert cli.main([*diamond, *SLURM]) == 0
    assert dependencies(queue) == {"root": set(), "alone": set(), "left": {"101"}, "right": {"101"}, "last": {"103", "104"}}


def test_a_dry_run_writes_every_script_and_lines_that_a_shell_can_run(queue, diamond, tmp_path, capsys):
    assert cli.main([*diamond, *SLURM, "dry_run=true"]) == 0
    assert queue.submitted == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("=")[0] for line in lines] == ["job_root", "job_alone", "job_left", "job_right", "job_last"]
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("job.sbatch")) == [
        "alone",
        "last",
        "left",
        "right",
        "root",
    ]
    subprocess.run(["sh", "-ec", "\n".join(lines)], check=True)
    assert dependencies(queue) == {"root": set(), "alone": set(), "left": {"101"}, "right": {"101"}, "last": {"103", "104"}}
    assert not list((tmp_path / "out").rglob("job.json"))


def test_a_chain_that_a_shell_has_submitted_writes_the_ladder_and_begins_anew_once_its_job_starts(
    queue, diamond, tmp_path, capsys
):
    assert cli.main([*diamond, *SLURM, "dry_run=true"]) == 0
    for step in ("root", "alone", "left", "right", "last"):
        finish(tmp_path / "out", step)
    steps.conclude(str(tmp_path / "out/last"))
    assert (tmp_path / "out/result.json").exists()
    capsys.readouterr()
    assert cli.main([*diamond, *SLURM, "dry_run=true"]) == 0
    assert capsys.readouterr().out == "# all 5 steps are done: nothing is to be submitted\n"
    assert cli.main([*diamond, *SLURM, "dry_run=true", "from=last"]) == 0
    assert "resume=never" in (tmp_path / "out/last/job.sbatch").read_text()
    assert (tmp_path / "out/last/result.json").exists()


def test_the_size_told_is_that_of_the_job(queue, tmp_path, capsys):
    (tmp_path / "one.yaml").write_text("a: [stage=check, model.path=x, data=jsonl, 'data.files=[x]']")
    assert cli.main(["recipe=one.yaml", "output_dir=out", *SLURM, "cluster.nodes=2", "cluster.tasks_per_node=4"]) == 0
    assert "[1/1] a: job 101, 1 node of 1 rank\n" in capsys.readouterr().out
    assert "--nodes=1\n" in (tmp_path / "out/a/job.sbatch").read_text()


def test_from_submits_that_step_and_the_later_ones_anew_and_empties_their_folders_once(queue, diamond, tmp_path, capsys):
    assert cli.main([*diamond, *SLURM]) == 0
    for step in ("root", "alone", "left", "right", "last"):
        finish(tmp_path / "out", step)
    queue.show()
    before = len(queue.submitted)
    assert cli.main([*diamond, *SLURM, "from=right"]) == 0
    assert [Path(each.split()[-1]).parent.name for each in queue.submitted[before:]] == ["right", "last"]
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("result.json")) == ["alone", "left", "root"]
    assert ["--hold " in each for each in queue.submitted] == [False] * 5 + [True] * 2
    assert queue.others == ["scontrol release 106", "scontrol release 107"]
    # in the script it is an ordinary run, which goes on wherever its checkpoints are when it is started again
    assert "resume=never" not in (tmp_path / "out/right/job.sbatch").read_text()
    assert cli.main([*diamond, *SLURM]) == 0
    assert len(queue.submitted) == before + 2


def test_a_step_whose_job_is_refused_keeps_what_it_has(queue, diamond, tmp_path, monkeypatch):
    for step in ("root", "alone", "left", "right", "last"):
        finish(tmp_path / "out", step)
    queue.refuse(102)
    assert cli.main([*diamond, *SLURM, "from=right"]) == 2
    assert [(tmp_path / "out" / step / "result.json").exists() for step in ("right", "last")] == [False, True]
    queue.refuse(0)
    queue.show()
    monkeypatch.setattr(output, "claim", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main([*diamond, *SLURM, "from=last"])
    assert queue.others == ["scontrol release 101", "scancel 103"]  # none stays held


def test_a_step_that_is_done_follows_one_that_is_made_again(queue, diamond, tmp_path):
    assert cli.main([*diamond, *SLURM]) == 0
    for step in ("root", "alone", "left", "last"):  # right was lost
        finish(tmp_path / "out", step)
    queue.show()
    before = len(queue.submitted)
    assert cli.main([*diamond, *SLURM]) == 0
    again = queue.submitted[before:]
    assert [Path(each.split()[-1]).parent.name for each in again] == ["right", "last"]
    assert "--dependency=afterok:106 " in again[1]


def test_jobs_that_would_read_what_is_made_again_are_refused_before_anything_is_emptied(queue, diamond, tmp_path, capsys):
    assert cli.main([*diamond, *SLURM]) == 0
    for step in ("root", "alone", "left"):
        finish(tmp_path / "out", step)
    queue.show("104|PENDING|0|0:00|Priority", "105|PENDING|0|0:00|Dependency")
    before = len(queue.submitted)
    assert cli.main([*diamond, *SLURM, "from=left"]) == 2
    first = "step right: job 104, pending (Priority), is to begin anew: scancel 104 first\n"
    assert first in capsys.readouterr().err
    assert cli.main([*diamond, *SLURM, "from=last"]) == 2
    assert "step last: job 105, pending (Dependency), is to begin anew: scancel 105 first\n" in capsys.readouterr().err
    queue.show("104|FAILED|0|0:00|NonZeroExitCode", "105|PENDING|0|0:00|Dependency")  # it is not cancelled yet
    assert cli.main([*diamond, *SLURM]) == 2
    why = "waits for an earlier job of right, which is to be made again: scancel 105 first"
    assert f"step last: job 105, pending (Dependency), {why}\n" in capsys.readouterr().err
    queue.show("104|COMPLETING|0|0:00|None", "105|PENDING|0|0:00|Dependency")
    assert cli.main([*diamond, *SLURM]) == 2
    assert "step right: job 104 of this folder is ending: type the command again in a moment\n" in capsys.readouterr().err
    assert len(queue.submitted) == before
    assert (tmp_path / "out/left/result.json").exists()


def test_a_job_whose_turn_never_comes_is_submitted_again(queue, diamond, tmp_path):
    assert cli.main([*diamond, *SLURM]) == 0
    for step in ("root", "alone", "left"):
        finish(tmp_path / "out", step)
    queue.show("104|FAILED|0|0:00|NonZeroExitCode", "105|PENDING|0|0:00|DependencyNeverSatisfied")
    assert cli.main([*diamond, *SLURM]) == 0
    assert dependencies(queue)["last"] == {"106"}


def test_other_values_than_those_of_a_job_in_the_queue_are_refused(queue, diamond, capsys):
    assert cli.main([*diamond, *SLURM]) == 0
    assert cli.main([*diamond, *SLURM, "seed=3"]) == 2
    assert (
        "step root: job 101, pending (Priority), is of other values, now seed=3: scancel 101 first\n" in capsys.readouterr().err
    )
    assert len(queue.submitted) == 5


def test_a_folder_that_another_process_works_in_is_refused(queue, diamond, tmp_path, capsys):
    from bgetrain import lock

    with lock.held(str(tmp_path / "out" / "alone")):
        assert cli.main([*diamond, *SLURM]) == 2
    assert "out/alone is in use by process" in capsys.readouterr().err
    assert queue.submitted == []


def test_inside_an_allocation_the_steps_run_in_order_and_nothing_is_submitted(queue, diamond, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    ran = []
    monkeypatch.setattr(recipe, "report", lambda *_: None)
    assert recipe.run([*diamond, *SLURM], lambda overrides: ran.append(overrides[0]) or 0) == 0
    assert len(ran) == 5
    assert queue.submitted == []


def test_the_job_that_ends_last_writes_the_ladder_and_no_other(queue, diamond, tmp_path, capsys):
    assert cli.main([*diamond, *SLURM]) == 0
    scores = {"metrics": {"ndcg@10": 0.5, "mrr@10": 0.4, "recall@100": 0.9}}
    out = tmp_path / "out"
    for step, figures in (("root", {}), ("left", scores), ("right", {}), ("last", {}), ("alone", {})):
        assert not (out / "result.json").exists()
        finish(out, step, **figures)
        steps.conclude(str(out / step))
    assert json.loads((out / "result.json").read_text())["ladder"] == [{"step": "left", **scores["metrics"]}]
    assert "0.5000  0.4000" in capsys.readouterr().out
    before = (out / "result.json").stat().st_mtime_ns
    steps.conclude(str(out / "last"))  # a job that was started again at its very end
    assert (out / "result.json").stat().st_mtime_ns == before
    (out / "result.json").unlink()
    assert cli.main([*diamond, *SLURM]) == 0  # all done: the command itself writes and shows it
    assert json.loads((out / "result.json").read_text())["ladder"] == [{"step": "left", **scores["metrics"]}]
    assert len(queue.submitted) == 5


def test_what_a_recipe_notes_of_a_run_here_holds_no_secret(tmp_path):
    steps.note(str(tmp_path), "any", [steps.Step("a", ["logger.api_key=hunter22"], f"{tmp_path}/a", [])], {})
    assert "hunter22" not in (tmp_path / "steps.json").read_text()
    assert steps.noted(tmp_path)[1][0].output_dir == f"{tmp_path}/a"


# --- cluster.* of a step ----------------------------------------------------------------------------------------------


def planned(tmp_path: Path, text: str, *extras: str) -> dict[str, list[str]]:
    """Step -> its overrides of the cluster."""
    (tmp_path / "sizes.yaml").write_text(text)
    made = recipe.plan(f"{tmp_path}/sizes.yaml", "out", list(extras))
    return {step.name: [each for each in step.overrides if each.startswith("cluster")] for step in made}


def test_a_steps_size_counts_under_the_cluster_that_has_such_a_key_alone(tmp_path):
    text = "a: [stage=tokenizer, cluster.nodes=6, cluster.timeout_minutes=9, cluster.environment.X=1]\nb: [stage=tokenizer]"
    assert planned(tmp_path, text) == {"a": ["cluster.timeout_minutes=9"], "b": []}
    sizes = ["cluster.nodes=6", "cluster.timeout_minutes=9", "cluster.environment.X=1", "cluster=slurm"]
    assert planned(tmp_path, text, "cluster=slurm") == {"a": sizes, "b": ["cluster=slurm"]}
    asked = ("cluster=slurm", "cluster.partition=low", "cluster.environment.Y=2")
    assert planned(tmp_path, text, *asked) == {"a": [*sizes, *asked[1:]], "b": list(asked)}


def test_a_step_may_choose_a_cluster_and_the_command_line_wins_over_it(tmp_path):
    text = "a: [stage=tokenizer, cluster=slurm, cluster.nodes=6]"
    assert planned(tmp_path, text) == {"a": ["cluster=slurm", "cluster.nodes=6"]}
    assert planned(tmp_path, text, "cluster=local") == {"a": ["cluster=local"]}


@pytest.mark.parametrize(
    ("text", "extras", "said"),
    [
        ("a: [stage=tokenizer, cluster.node=6]", [], "conf/cluster has no key 'node'; did you mean cluster.nodes"),
        ("a: [stage=tokenizer]", ["cluster.partition=x"], "cluster.partition is a key of cluster=slurm: add that"),
        ("a: [stage=tokenizer]", ["cluster=slrum"], "did you mean slurm?"),
        ("a: [stage=tokenizer, cluster.nodes=0]", ["cluster=slurm"], "cluster.nodes must be a whole number above 0, got 0"),
    ],
)
def test_a_key_that_no_cluster_has_is_refused_with_the_nearest(tmp_path, text, extras, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        planned(tmp_path, text, *extras)


def test_steps_for_different_machines_are_refused(queue, tmp_path, capsys):
    (tmp_path / "two.yaml").write_text("a: [stage=tokenizer]\nb: [stage=tokenizer, cluster=slurm]")
    assert cli.main([f"recipe={tmp_path}/two.yaml", f"output_dir={tmp_path}/out"]) == 2
    assert "step a is not for cluster=slurm where others are" in capsys.readouterr().err


def test_a_script_holds_the_steps_own_command(queue, diamond, tmp_path):
    """What a step does is fixed when it is submitted: a recipe that is edited while it waits changes nothing."""
    assert cli.main([*diamond, *SLURM, "seed=5"]) == 0
    script = (tmp_path / "out/left/job.sbatch").read_text()
    words = shlex.split(script[script.index("run=(") + 5 :].partition("\n)")[0])
    assert {"stage=evaluate", "model.path=out/root/model", "seed=5", "output_dir=out/left"} <= set(words)
    assert yaml.safe_load((tmp_path / "out/steps.json").read_text())["recipe"] == "diamond"
