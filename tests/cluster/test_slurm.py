"""cluster=slurm from the command line, with programs that stand in for SLURM's."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from bgetrain import cli, lock, steps
from bgetrain.cluster import queue, slurm
from bgetrain.cluster.place import Command
from bgetrain.selection import CONF

ANSWERS = {
    "sbatch": 'printf "%s\\n" "$*" >>submitted; echo "a site\'s own line"; echo "12;cluster"',
    "squeue": "cat queue",
    "srun": 'printf "%s\\0" "$@" >started; exit $(cat status)',
}
STAGE = ["stage=finetune", "data=jsonl", "data.files=[none.jsonl]", "model.path=none", "cluster=slurm"]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder where one is, and in it the answers of SLURM's programs."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SLURM") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]:
        monkeypatch.delenv(name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in ANSWERS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LOCAL_RANK", "0")  # to be taken away again, should a rank set it
    return tmp_path


def row(id: str, state: str, restarts: int = 0, left: str = "1:00", reason: str = "None") -> str:
    return f"{id:64}|{state:32}|{restarts:<16}|{left:32}|{reason}\n"


def launch(*, dry_run: bool = False, **given) -> int:
    asked = yaml.safe_load((CONF / "cluster/slurm.yaml").read_text("utf8")) | {"nodes": 2, "gpus_per_node": 0, **given}
    del asked["_target_"]
    return slurm.launch(lambda place: place.size, Command(["stage=mine", "a='b c'"], "mine", "out", None, dry_run), **asked)


def test_a_command_submits_says_where_to_look_and_does_so_once(site, capsys):
    assert cli.main([*STAGE, "output_dir=out"]) == 0
    assert (site / "submitted").read_text() == f"--parsable {site}/out/job.sbatch\n"
    said = capsys.readouterr().out
    for words in ("as job 12", f"tail -F {site}/out/slurm-12.out", "squeue --job=12", "scancel 12", "--signal=INT 12"):
        assert words in said
    (site / "queue").write_text(row("12", "PENDING", reason="Priority"))
    elsewhere = {"host": "node7", "pid": 1, "started_at": "today", "machine": "x", "space": "y"}
    (site / "out/.lock").write_text(json.dumps(elsewhere))  # of the job that runs there
    assert cli.main([*STAGE, "output_dir=out"]) == 0
    said = capsys.readouterr()
    assert "job 12 of this folder is PENDING (Priority)" in said.out
    assert said.err == ""  # it does not wait for the folder
    assert len((site / "submitted").read_text().splitlines()) == 1
    (site / "queue").write_text(row("12", "CANCELLED"))
    (site / "out/.lock").unlink()
    assert cli.main([*STAGE, "output_dir=out"]) == 0
    assert len((site / "submitted").read_text().splitlines()) == 2


def test_a_folder_that_a_process_of_this_machine_works_in_is_not_submitted(site, capsys):
    with lock.held("out"):
        assert cli.main([*STAGE, "output_dir=out"]) == 2
    assert "output_dir=out is in use by process" in capsys.readouterr().err
    assert not (site / "submitted").exists()


def test_a_recipes_result_that_cannot_be_written_does_not_fail_its_last_step(site, capsys, monkeypatch):
    monkeypatch.setattr(steps, "conclude", lambda _: {}["metrics"])
    assert cli.main([*STAGE, "output_dir=out"]) == 0
    said = "WARNING: the step is done, and the recipe's result.json was not written (KeyError: 'metrics')\n"
    assert capsys.readouterr().err == said


def test_other_overrides_than_those_of_the_job_in_the_queue_are_refused_and_named(site, capsys):
    assert cli.main([*STAGE, "output_dir=out", "seed=1"]) == 0
    (site / "queue").write_text(row("12", "PENDING", reason="Priority"))
    assert cli.main(["output_dir=out", "seed=1", *STAGE]) == 0
    assert cli.main([*STAGE, "output_dir=out", "seed=2"]) == 2
    said = "bgetrain: job 12, pending (Priority), is of other values (seed=1), now seed=2: scancel 12 first\n"
    assert capsys.readouterr().err == said
    (site / "queue").write_text(row("12", "COMPLETING"))
    assert cli.main([*STAGE, "output_dir=out", "seed=1"]) == 2
    assert capsys.readouterr().err == "bgetrain: job 12 of this folder is ending: type the command again in a moment\n"
    assert len((site / "submitted").read_text().splitlines()) == 1
    (site / "queue").write_text(row("12", "PENDING", reason="DependencyNeverSatisfied"))
    assert cli.main([*STAGE, "output_dir=out", "seed=2"]) == 0
    assert len((site / "submitted").read_text().splitlines()) == 2


def test_the_script_has_the_command_as_it_was_typed(site):
    typed = [*STAGE, 'data.query_instruction="什么 $HOME: it\'s"', "cluster.time=90", "resume=never", "output_dir=out"]
    assert cli.main([*typed, "dry_run=true"]) == 0
    assert not (site / "submitted").exists()
    text = (site / "out/job.sbatch").read_text("utf8")
    assert shlex.split(text[text.index("run=(") + 5 : text.index("\n)\n")]) == typed


def test_a_finished_folder_is_not_submitted(site, capsys):
    from omegaconf import OmegaConf

    from bgetrain import config, output

    chosen = [*STAGE, "output_dir=out"]
    cfg = OmegaConf.to_container(config.compose(chosen), resolve=True)
    output.claim(cfg)
    output.finish("out", "finetune", {})
    assert cli.main(chosen) == 0
    assert "already done" in capsys.readouterr().out
    assert not (site / "submitted").exists()


@pytest.mark.parametrize(
    "given", [["output_dir=out", "num_processes=4"], ["output_dir=out", "cluster.environment={HF_TOKEN: abcdefghi}"]]
)
def test_what_a_job_cannot_have_is_refused_in_one_line(site, capsys, given):
    assert cli.main([*STAGE, *given]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "num_processes=4 is for one machine" in said or "cluster.environment.HF_TOKEN holds a secret" in said
    assert "abcdefghi" not in said
    assert not (site / "out").exists()


def test_sbatch_that_refuses_or_is_missing_is_told_in_its_words(site, capsys, monkeypatch):
    (site / "bin/sbatch").write_text("#!/bin/bash\necho >&2 'sbatch: error: invalid partition specified: x'; exit 1\n")
    assert cli.main([*STAGE, "output_dir=out"]) == 2
    assert capsys.readouterr().err == "bgetrain: SLURM's sbatch refuses: invalid partition specified: x\n"
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main([*STAGE, "output_dir=out"]) == 2
    assert "needs SLURM's sbatch" in capsys.readouterr().err


def test_inside_an_allocation_srun_starts_the_ranks(site, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for status, expected in ((0, 0), (2, 2), (75, 75), (137, 1)):
        (site / "status").write_text(str(status))
        assert launch(tasks_per_node=3) == expected
    words = (site / "started").read_text().split("\0")[:-1]
    assert words[:3] == ["--nodes=2", "--ntasks=6", "--ntasks-per-node=3"]
    assert words[-5:] == [sys.executable, "-m", "bgetrain", "stage=mine", "a='b c'"]
    (site / "started").unlink()
    assert launch(tasks_per_node=3, dry_run=True) == 0
    assert shlex.split(capsys.readouterr().out)[1:] == words
    assert not (site / "started").exists()


def test_inside_an_allocation_a_signal_reaches_srun_as_one_that_it_passes_on(site):
    (site / "bin/srun").write_text("#!/bin/bash\ntrap 'exit 75' USR1\ntouch listens; for i in $(seq 200); do sleep 0.05; done\n")
    own = {**os.environ, "SLURM_JOB_ID": "12"}
    process = subprocess.Popen([sys.executable, "-m", "bgetrain", *STAGE, "output_dir=out"], env=own)
    deadline = time.monotonic() + 30
    while not (site / "listens").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75


def test_a_process_that_srun_has_started_is_a_rank(site, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1")
    monkeypatch.setenv("SLURM_NODEID", "0")
    assert launch() == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launch() == 4


@pytest.mark.parametrize(
    ("variables", "said"), [({}, 1), ({"RANK": "0", "WORLD_SIZE": "4"}, 1), ({"RANK": "3", "WORLD_SIZE": "4"}, 0)]
)
def test_a_rank_of_a_dry_run_says_the_command_and_runs_nothing(site, monkeypatch, capsys, variables, said):
    step = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    for name, value in {**step, "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    assert launch(dry_run=True) == 0
    assert capsys.readouterr().out.splitlines() == ["bgetrain stage=mine 'a='\"'\"'b c'\"'\"''"] * said


def test_dependencies_and_arrays_reach_sbatch_and_the_id_is_noted(site):
    script = site / "job.sbatch"
    assert queue.submitted(str(site)) is None
    assert queue.submit(script, after=["3", "4"], array=8, parallel=3) == "12"
    dependency = "--dependency=afterok:3:4 --kill-on-invalid-dep=yes"
    assert (site / "submitted").read_text() == f"--parsable {dependency} --array=0-7%3 {script}\n"
    assert queue.submitted(str(site)) == "12"
    (site / "job.json").write_text("[]")
    assert queue.submitted(str(site)) is None


def test_jobs_stand_as_the_controller_says(site):
    rows = [row("3", "RUNNING", 2, "1-02:00:00"), row("4", "PENDING", 0, "5:00", "Dependency | never"), row("5_0", "COMPLETED")]
    (site / "queue").write_text(
        "".join([*rows, row("5_1", "FAILED", reason="NonZeroExitCode"), row("6", "RUNNING", left="UNLIMITED")])
    )
    found = queue.jobs(["3", "4", "5", "6", "9"])
    assert found["3"] == queue.Job("3", "RUNNING", "", 2, 93600.0)
    assert found["4"] == queue.Job("4", "PENDING", "Dependency | never", 0, None)
    assert found["5"] == found["5_1"]._replace(id="5")
    assert found["6"].seconds_left is None
    assert found["9"] == queue.Job("9", "UNKNOWN", "", 0, None)
    assert [found[id].is_over for id in ("3", "4", "5", "9")] == [False, False, True, True]
    assert queue.jobs([]) == {}


def test_a_controller_that_knows_none_of_the_jobs_and_one_that_is_away(site):
    says = "#!/bin/bash\necho >&2 'slurm_load_jobs error: {}'; exit 1\n"
    (site / "bin/squeue").write_text(says.format("Invalid job id specified"))
    assert queue.jobs(["9"])["9"].state == "UNKNOWN"
    (site / "bin/squeue").write_text(says.format("Unable to contact slurm controller"))
    with pytest.raises(ValueError, match="squeue refuses"):
        queue.jobs(["9"])


TIMES = {
    5: 300,
    "5": 300,
    "1:30": 90,
    "2:00:00": 7200,
    "1-0": 86400,
    "1-02:03": 93780,
    "1-02:03:04": 93784,
    "UNLIMITED": None,
    "": None,
}


@pytest.mark.parametrize(("time", "seconds"), TIMES.items())
def test_times_are_read_as_slurm_reads_them(time, seconds):
    assert queue.seconds_of(time) == seconds
