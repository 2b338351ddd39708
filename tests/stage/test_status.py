"""stage=status: how runs stand, by what they leave, by their locks, and by a stand-in for SLURM's queue."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bgetrain import cli, lock, output, steps
from bgetrain.cluster import queue as controller
from bgetrain.stage import status

sys.path.insert(0, str(Path(__file__).parent.parent))
from queues import Queue

CONFIG = "seed: 1\noutput_dir: x\nresume: auto\n"


@pytest.fixture
def queue(tmp_path, monkeypatch) -> Queue:
    made = Queue(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made


def begun(folder: Path, *metrics: dict) -> Path:
    """A folder of a run that has begun, with these lines of metrics."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "provenance.json").write_text("{}")
    if metrics:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def line(step: int, total: int, **more: float) -> dict:
    return {"step": step, "loss": 2.0 / step, "progress_ratio": step / total, "seconds_left": 1000.0, **more}


def as_recipe(folder: Path, needs: dict[str, list[str]]) -> Path:
    made = [steps.Step(name, ["stage=x"], f"{folder}/{name}", reads) for name, reads in needs.items()]
    steps.note(str(folder), "small", made, {name: ["stage=x"] for name in needs})
    return folder


def submitted(folder: Path, id: str, log: str | None = None) -> None:
    controller.note(folder, id, folder / "job.sbatch")
    if log is not None:
        (folder / f"slurm-{id}.out").write_text(log)


def shown(capsys, folder: Path) -> dict[str, dict]:
    assert cli.main(["stage=status", f"output_dir={folder}", "format=json"]) == 0
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_run_of_this_machine_shows_its_step_its_losses_and_whether_a_process_works_on_it(tmp_path, capsys):
    folder = begun(tmp_path / "pairs", line(1, 40), line(10, 40, encoder_loss=0.5), {"step": 10, "ndcg@10": 0.3})
    with lock.held(str(folder)):
        (row,) = shown(capsys, folder).values()
        assert cli.main(["stage=status", f"output_dir={folder}"]) == 0
        table = capsys.readouterr().out
    assert (row["state"], row["step"], row["total_steps"], row["progress_ratio"]) == ("running", 10, 40, 0.25)
    assert row["figures"] == {"loss": 0.2, "encoder_loss": 0.5}
    assert f"process {os.getpid()} on " in row["why"]
    assert 990 < row["seconds_left"] <= 1000
    assert "10 of 40 (25 %)  loss 0.2000, encoder_loss 0.5000  16 min" in table
    (row,) = shown(capsys, folder).values()
    assert (row["state"], row["why"]) == ("interrupted", "the same command goes on")
    output.finish(str(folder), "pairs", {})
    assert [row["state"] for row in shown(capsys, folder).values()] == ["done"]


def test_the_time_left_of_a_run_that_runs_counts_from_its_last_line(tmp_path, capsys):
    folder = begun(tmp_path / "pairs", line(10, 40))
    earlier = time.time() - 300
    os.utime(folder / "metrics.jsonl", (earlier, earlier))
    with lock.held(str(folder)):
        (row,) = shown(capsys, folder).values()
    assert 690 <= row["seconds_left"] <= 701


def test_every_step_of_a_chain_has_its_state_and_the_reason(queue, tmp_path, capsys):
    needs = {
        "a": [],
        "b": ["a"],
        "c": ["b"],
        "d": ["c"],
        "e": ["a"],
        "f": ["e"],
        "g": ["e", "b"],
        "h": ["a"],
        "i": [],
        "j": ["a"],
    }
    folder = as_recipe(tmp_path / "out", needs)
    output.finish(str(begun(folder / "a")), "tokenizer", {"metrics": {"ndcg@10": 0.5}})
    begun(folder / "b", line(1, 10))
    crash = "Traceback (most recent call last):\n  File x\nRuntimeError: CUDA error: out of memory\nsrun: error: node1: exit 1\n"
    for step, id, log in (("a", "1", ""), ("b", "2", crash), ("e", "5", "bgetrain: data.path=x: nothing\nsrun: error: y\n")):
        submitted(folder / step, id, log)
    for step, id in (("c", "3"), ("d", "4"), ("f", "6"), ("g", "7"), ("h", "8"), ("j", "10")):
        submitted(folder / step, id)
    queue.show(
        "2|FAILED|2|0:00|NonZeroExitCode",
        "3|CANCELLED|0|0:00|DependencyNeverSatisfied",
        "4|PENDING|0|0:00|DependencyNeverSatisfied",
        "5|RUNNING|1|1:02:00|None", "6|PENDING|0|0:00|Dependency", "7|PENDING|0|0:00|Dependency", "8|PENDING|0|0:00|Priority",
        "10|TIMEOUT|0|0:00|TimeLimit",
    )  # fmt: skip
    rows = shown(capsys, folder)
    assert {step: (row["state"], row["why"]) for step, row in rows.items()} == {
        "a": ("done", ""),
        "b": ("failed", "RuntimeError: CUDA error: out of memory"),
        "c": ("cancelled", "b has failed"),
        "d": ("cancelled", "never starts: c was cancelled"),
        "e": ("running", ""),
        "f": ("waiting", "for e"),
        "g": ("waiting", "for e and b"),
        "h": ("queued", "Priority"),
        "i": ("not begun", ""),
        "j": ("failed", "timeout"),
    }
    assert rows["a"]["figures"] == {"ndcg@10": 0.5}
    assert (rows["b"]["restarts"], rows["e"]["limit_seconds"], rows["e"]["job"]) == (2, 3720.0, "5")
    assert cli.main(["stage=status", f"output_dir={folder}"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == f"{folder}: 1 done, 3 failed, 2 cancelled, 1 running, 2 waiting, 1 queued, 1 not begun".replace(
        "3 f", "2 f"
    )
    assert any(row.split()[:7] == ["f", "waiting", "for", "e", "6"] or "waiting for e " in row for row in table)
    assert any("5 (1 restart)" in row and "limit in 1 h 2 min" in row for row in table)


def test_what_the_controller_has_forgotten_is_told_from_the_folders(queue, tmp_path, capsys):
    folder = as_recipe(tmp_path / "out", {"a": [], "b": ["a"]})
    begun(folder / "a")
    submitted(folder / "a", "1", "bgetrain: data.path=x: nothing there\n2026-01-01 job 1: something is to be mended (status 2)\n")
    submitted(folder / "b", "2")
    rows = shown(capsys, folder)
    assert [(row["state"], row["why"]) for row in rows.values()] == [
        ("failed", "data.path=x: nothing there"),
        ("cancelled", "a has failed"),
    ]


def test_without_slurm_it_says_what_the_folders_tell(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = as_recipe(tmp_path / "out", {"a": [], "b": ["a"]})
    output.finish(str(begun(folder / "a")), "tokenizer", {})
    submitted(folder / "b", "2")
    assert cli.main(["stage=status", f"output_dir={folder}"]) == 0
    said = capsys.readouterr().out
    assert "queued: or not: SLURM cannot be asked" in said
    assert "of jobs nothing is known: " in said
    assert "squeue" in said


def test_a_sweep_and_a_folder_of_runs_show_all_below_in_the_order_of_numbers(queue, tmp_path, capsys):
    folder = tmp_path / "sweep"
    for number in (10, 2):
        begun(folder / str(number))
        controller.note(folder / str(number), f"7_{number}", folder / "array-1/job.sbatch")
    controller.note(folder / "array-1", "7", folder / "array-1/job.sbatch")
    (folder / "array-1/jobs.txt").touch()
    (folder / "array-1/slurm-7_2.out").write_text("ValueError: no\n")
    as_recipe(folder / "3", {"a": []})
    queue.show("7_2|FAILED|0|0:00|NonZeroExitCode", "7_10|RUNNING|0|UNLIMITED|None")
    rows = shown(capsys, folder)
    assert {run: (row["state"], row["why"]) for run, row in rows.items()} == {
        "2": ("failed", "ValueError: no"),
        "3/a": ("not begun", ""),
        "10": ("running", ""),
    }
    assert list(rows) == ["2", "3/a", "10"]


@pytest.mark.parametrize(
    ("make", "said"),
    [(False, "there is no such folder: nothing has run there, or been submitted"), (True, "holds no run, recipe or sweep")],
)
def test_a_folder_that_is_none_of_these_is_said_in_one_line(tmp_path, capsys, make, said):
    if make:
        (tmp_path / "out" / "else").mkdir(parents=True)
    assert cli.main(["stage=status", f"output_dir={tmp_path}/out"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert said in told.err


def test_it_leaves_the_folder_as_it_is_and_imports_nothing_heavy(tmp_path):
    folder = begun(tmp_path / "pairs", line(1, 2))
    before = sorted(path.name for path in folder.iterdir())
    code = "import sys\nfrom bgetrain import cli\nstatus = cli.main(sys.argv[1:])\n"
    code += "assert not {'torch', 'numpy', 'transformers', 'datasets'} & set(sys.modules)\nsys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code, "stage=status", f"output_dir={folder}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 (50 %)" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_line_that_is_being_written_is_passed_over(tmp_path):
    folder = begun(tmp_path / "pairs", line(3, 10))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert status.last_metrics(folder / "metrics.jsonl")["step"] == 3
