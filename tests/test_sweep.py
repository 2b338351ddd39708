"""`-m` under SLURM: job arrays, by a stand-in for the controller; sweeps on one machine are in test_cli.py."""

import re
import shlex
from pathlib import Path

import pytest
from queues import Queue

from bgetrain import chain, cli, config, output

SLURM = ("cluster=slurm", "cluster.gpus_per_node=0")
STAGE = ("stage=tokenizer", "data=text", "data.files=[x]")


@pytest.fixture
def queue(tmp_path, monkeypatch) -> Queue:
    made = Queue(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return made


def tasks(script: str) -> dict[str, list[str]]:
    """Folder of each task of an array, in order, with its overrides."""
    rows = [shlex.split(row) for row in Path(script).with_name("jobs.txt").read_text().splitlines()]
    return {Path(row[0]).name: row[1:] for row in rows}


def test_a_sweep_is_one_array_with_a_task_for_each_combination(queue, tmp_path, capsys):
    own = (f"output_dir={tmp_path}/sweep", "cluster.array_parallel=2")
    assert cli.main(["-m", *STAGE, *SLURM, *own, "seed=1,2", "model.hidden_size=32,64"]) == 0
    (line,) = queue.submitted
    assert line.split()[0] == "--array=0-3%2"
    found = tasks(line.split()[-1])
    chosen = [[each for each in words if each.startswith(("seed", "model.h"))] for words in found.values()]
    assert chosen == [["seed=1", "model.hidden_size=32"], ["seed=1", "model.hidden_size=64"], ["seed=2", "model.hidden_size=32"],
                      ["seed=2", "model.hidden_size=64"]]  # fmt: skip
    assert list(found) == ["0", "1", "2", "3"]
    assert [f"output_dir={tmp_path}/sweep/{number}" in words for number, words in found.items()] == [True] * 4
    said = capsys.readouterr().out
    assert "job 101: an array of 4, 1 node of 1 rank each; to cancel them: scancel 101\n" in said


def test_a_second_command_submits_only_the_tasks_that_are_neither_done_nor_in_the_queue(queue, tmp_path, capsys):
    command = ["-m", *STAGE, *SLURM, f"output_dir={tmp_path}/sweep", "seed=1,2,3,4"]
    assert cli.main(command) == 0
    cfg = chain.composed((*STAGE, *SLURM, "seed=2", f"output_dir={tmp_path}/sweep/1"))
    output.claim(cfg)
    (tmp_path / "sweep/1/train.jsonl").write_text("{}")
    output.finish(cfg["output_dir"], "tokenizer", {})
    queue.show(
        "101_0|RUNNING|0|0:00|None", "101_1|COMPLETED|0|0:00|None", "101_2|FAILED|0|0:00|None", "101_3|CANCELLED|0|0:00|None"
    )
    capsys.readouterr()
    assert cli.main(command) == 0
    assert [line.split()[0] for line in queue.submitted] == ["--array=0-3", "--array=0-1"]
    scripts = [line.split()[-1] for line in queue.submitted]
    assert list(tasks(scripts[1])) == ["2", "3"]
    assert list(tasks(scripts[0])) == ["0", "1", "2", "3"]  # which tasks that wait, or are requeued, have yet to read
    said = capsys.readouterr().out
    assert "[1/4] seed=1: job 101_0 is there already, running\n" in said
    assert "[2/4] seed=2: already done\n" in said


def test_a_sweep_of_other_values_than_those_of_a_task_in_the_queue_is_refused(queue, tmp_path, capsys):
    command = ["-m", *STAGE, *SLURM, f"output_dir={tmp_path}/sweep", "seed=1,2"]
    assert cli.main(command) == 0
    queue.show("101_0|PENDING|0|0:00|Priority", "101_1|PENDING|0|0:00|Priority")
    assert cli.main([*command, "model.hidden_size=32"]) == 2
    said = "job 101_0, pending (Priority), is of other values, now model.hidden_size=32: scancel 101_0 first\n"
    assert said in capsys.readouterr().err
    assert len(queue.submitted) == 1


def test_combinations_of_other_sizes_are_arrays_of_their_own(queue, tmp_path):
    assert cli.main(["-m", *STAGE, *SLURM, f"output_dir={tmp_path}/sweep", "cluster.nodes=1,2", "seed=1,2"]) == 0
    assert [line.split()[0] for line in queue.submitted] == ["--array=0-1"] * 2
    nodes = [re.search(r"--nodes=(\d)", Path(line.split()[-1]).read_text())[1] for line in queue.submitted]
    assert nodes == ["1", "2"]
    assert [list(tasks(line.split()[-1])) for line in queue.submitted] == [["0", "1"], ["2", "3"]]


def test_a_dry_run_of_a_sweep_writes_the_script_and_submits_nothing(queue, tmp_path, capsys):
    assert cli.main(["-m", *STAGE, *SLURM, f"output_dir={tmp_path}/sweep", "seed=1,2", "dry_run=true"]) == 0
    assert queue.submitted == []
    assert capsys.readouterr().out == f"sbatch --parsable --array=0-1 {tmp_path}/sweep/array-1/job.sbatch\n"
    assert list(tasks(f"{tmp_path}/sweep/array-1/job.sbatch")) == ["0", "1"]
    assert cli.main(["-m", *STAGE, f"output_dir={tmp_path}/here", "seed=1,2", "dry_run=true"]) == 0  # on this machine: its lines
    assert "seed=2" in capsys.readouterr().out.splitlines()[3]


@pytest.mark.parametrize("more", ["seed=1,x", "cluster.nodes=1,0"])
def test_a_mistake_in_any_combination_submits_none(queue, tmp_path, more):
    assert cli.main(["-m", *STAGE, *SLURM, f"output_dir={tmp_path}/sweep", more]) == 2
    assert queue.submitted == []
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_over_recipes_is_a_chain_for_each(queue, tmp_path):
    (tmp_path / "small.yaml").write_text(
        "a: [stage=tokenizer]\nb: [stage=evaluate, 'model.path=${a}/model', data.path=x, data=beir]"
    )
    assert cli.main(["-m", f"recipe={tmp_path}/small.yaml", *SLURM, f"output_dir={tmp_path}/sweep", "seed=1,2"]) == 0
    after = [re.findall(r"afterok:(\d+)", line) for line in queue.submitted]
    assert after == [[], ["101"], [], ["103"]]
    scripts = [Path(line.split()[-1]).relative_to(tmp_path / "sweep") for line in queue.submitted]
    assert list(map(str, scripts)) == ["0/a/job.sbatch", "0/b/job.sbatch", "1/a/job.sbatch", "1/b/job.sbatch"]


def test_the_limit_of_an_array_is_a_whole_number_above_0():
    with pytest.raises(ValueError, match=r"cluster.array_parallel must be a whole number above 0 or null, got 0"):
        config.compose([*STAGE, *SLURM, "cluster.array_parallel=0"])
