"""Ranks that srun has started train as one process does: plain srun, salloc, and the scripts for people."""

import json
import sys
import time

import pytest
from cluster import ROOT

# 16 queries in batches of 8, without dropout: the ranks' number leaves the losses as they are
TRAINING = [
    *("stage=finetune", "model=pretrained", "model.dropout=0", "data=beir", "data.query_max_len=16", "data.passage_max_len=32"),
    *("global_batch=8", "group_size=1", "total_steps=3", "log_every=1", "seed=1", "precision=fp32", "optim.lr=1e-4"),
    "cluster.timeout_minutes=3",
]
# holds the first two ports that the next three jobs would take on node1, by a program that never speaks and by another run
HOLD = """
import sys, time
from bgetrain.cluster import desk, srun
held = []
for job in range(int(sys.argv[1]), int(sys.argv[1]) + 3):
    first, second, *_ = srun.ports(job, 0, 0)
    held += [desk.listening(first), desk.Keeper("another run", 2, "node1", [second])]
open(sys.argv[2], "w").close()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def words(model_folder, beir_folder):
    return [*TRAINING, f"model.path={model_folder}", f"data.path={beir_folder}"]


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    """Figures of each step of one process."""
    from bgetrain import cli

    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID"):
            patch.delenv(name, raising=False)
        assert cli.main([*words, "num_processes=1", f"output_dir={folder}"]) == 0
    return figures(folder)


def figures(folder):
    """Loss and norm of the gradient of each step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf8").splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line]


def agrees(folder, alone):
    """Losses and gradients are those of one process: within 1e-5 of their size, of which sums in another order make 1e-6."""
    found = figures(folder)
    assert [step for step, *_ in found] == [1, 2, 3]
    assert [values for _, *values in found] == [pytest.approx(values, rel=1e-5) for _, *values in alone]
    assert json.loads((folder / "result.json").read_text("utf8"))["status"] == "done"


def test_ranks_of_a_plain_srun_train_as_one_process_where_the_first_ports_are_taken(cluster, words, alone, tmp_path):
    job = int(cluster.run("srun", "-w", "node1", "bash", "-c", "echo $SLURM_JOB_ID").stdout)
    holder = cluster.start("srun", "-w", "node1", sys.executable, "-c", HOLD, str(job + 2), tmp_path / "held", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline
        assert holder.poll() is None, holder.communicate()
        time.sleep(0.05)
    script = 'echo job $SLURM_JOB_ID; exec "$@"'
    line = ["bash", "-c", script, "_", sys.executable, "-m", "bgetrain", *words, f"output_dir={tmp_path}/out"]
    ran = cluster.run("srun", "-N2", "--ntasks-per-node=2", *line, cwd=tmp_path, seconds=240)
    assert ran.stdout.count(f"job {job + 2}\n") == 4  # for which the ports are held
    agrees(tmp_path / "out", alone)


def test_ranks_in_an_allocation_train_as_one_process_two_on_one_node_and_one_on_the_other(cluster, words, alone, tmp_path):
    line = ["srun", sys.executable, "-m", "bgetrain", *words, f"output_dir={tmp_path}/out"]
    cluster.run("salloc", "-N2", "-n3", "--ntasks-per-node=2", *line, cwd=tmp_path, seconds=240)
    agrees(tmp_path / "out", alone)


def test_an_error_of_one_rank_is_heard_and_ends_all_before_they_have_met(cluster, words, tmp_path):
    script = 'exec "$@" $([ $SLURM_PROCID = 3 ] && echo loss.temperature=0)'
    line = [sys.executable, "-m", "bgetrain", *words, f"output_dir={tmp_path}/out"]
    ran = cluster.run("srun", "-N2", "-n4", "bash", "-c", script, "_", *line, cwd=tmp_path, seconds=150, check=False)
    assert ran.returncode == 2
    said = [line for line in ran.stderr.splitlines() if not line.startswith(("srun:", "["))]
    own = [line for line in ran.stderr.splitlines() if line.startswith("[rank")]
    assert own == ["[rank 3] bgetrain: loss.temperature must be a number above 0, got 0"]
    assert said == []


def test_the_script_for_one_node_ends_with_the_status_of_a_mistake_which_is_said_once(cluster, words, tmp_path):
    sizes = ["--gpus-per-node=0", "--ntasks-per-node=3", "--cpus-per-task=1"]
    line = [*sizes, ROOT / "scripts" / "slurm-one-node.sbatch", *words, f"output_dir={tmp_path}/out", "loss.temperature=0"]
    job = cluster.run("sbatch", "--parsable", *line, cwd=tmp_path).stdout.strip()
    assert cluster.wait(job, {"FAILED"})["ExitCode"] == "2:0"
    assert cluster.output(job).count("bgetrain: loss.temperature must be a number above 0, got 0") == 1


@pytest.mark.parametrize(
    ("script", "sizes"),
    [
        ("slurm-six-nodes", ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]),
        ("slurm-torchrun", ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--export=ALL,RANKS_PER_NODE=1"]),
    ],
)
def test_the_scripts_train_as_one_process(cluster, words, alone, tmp_path, script, sizes):
    line = [*sizes, ROOT / "scripts" / f"{script}.sbatch", *words, f"output_dir={tmp_path}/out"]
    job = cluster.run("sbatch", "--parsable", *line, cwd=tmp_path).stdout.strip()
    cluster.wait(job, seconds=240)
    agrees(tmp_path / "out", alone)
