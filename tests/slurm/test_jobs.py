"""job.sbatch on the cluster: what becomes of a job by the way it ends, with stand-ins for the ranks; then real training."""

import shlex
import sys
import time
from pathlib import Path

import pytest
import yaml

from bgetrain.cluster import sbatch
from bgetrain.cluster.place import Command
from bgetrain.selection import CONF

NEXT_START = 'test "${SLURM_RESTART_COUNT:-0}" = 0 || exit 0'
# tells the test that it listens, saves for a second when asked, as a rank does; done from the second start on
SAVES = f"""{NEXT_START}
trap 'sleep 1; exit 75' USR1 TERM
echo >ready$SLURM_PROCID; for each in $(seq 600); do sleep 0.1; done; exit 1"""
# dies of the first signal, as Python does before it has begun to listen
DEAF = f"{NEXT_START}\necho >ready$SLURM_PROCID; exec sleep 60"
# saves for longer than SLURM waits
SLOW = f"{NEXT_START}\ntrap '' USR1 TERM\necho >ready$SLURM_PROCID; sleep 150 & wait; wait; wait; sleep 60"


class Job:
    """A job of `sbatch.write` whose ranks run a script of shell instead of Python, on 2 nodes."""

    def __init__(self, cluster, folder: Path, script: str, *flags: str, **request) -> None:
        folder.mkdir()
        stand_in = folder / "stand-in"
        stand_in.write_text(f"#!/bin/bash\ncd {shlex.quote(str(folder))}\n{script}\n", "utf8")
        stand_in.chmod(0o755)
        asked = yaml.safe_load((CONF / "cluster/slurm.yaml").read_text("utf8"))
        asked |= {"nodes": 2, "gpus_per_node": 0, "tasks_per_node": 1, "python": str(stand_in), **request}
        self.path = sbatch.write(Command(["stage=finetune"], "finetune", str(folder), None, False), asked)
        self.cluster, self.folder = cluster, folder
        self.id = cluster.run("sbatch", "--parsable", *flags, self.path).stdout.strip()

    def listens(self) -> None:
        """Waits until all ranks of the first start do."""
        deadline = time.monotonic() + 30
        while len(list(self.folder.glob("ready*"))) < 2:
            assert time.monotonic() < deadline, self.cluster.output(self.id)
            time.sleep(0.1)

    def ends(self, state: str, starts: int) -> str:
        """Waits for the end, as `state` after so many starts; returns the log."""
        job = self.cluster.wait(self.id, {state}, 60)
        log = (self.folder / f"slurm-{self.id}.out").read_text("utf8", "replace")
        assert int(job["Restarts"]) == starts - 1, log
        assert log.count(f"job {self.id}: start ") == starts, log
        return log


@pytest.fixture
def start(cluster, tmp_path):
    """start(name, script, *flags of sbatch, **keys of the cluster) -> Job"""
    return lambda name, script, *flags, **request: Job(cluster, tmp_path / name, script, *flags, **request)


def test_what_becomes_of_a_job_by_the_way_it_ends(cluster, start):
    """All at once, since each restart costs SLURM some seconds."""
    done = start("done 完 'a' \"b\" $c %j #d", "exit 0")
    mend = start("mend", "exit 2")
    once = start("once", f"{NEXT_START}\nexit 1")
    fails = start("fails", "exit 1", max_restarts=1)
    dies = start("dies", '[ "$SLURM_PROCID" != 1 ] || kill -KILL $$\nsleep 1; exit 1', max_restarts=0)
    saves, stops, cancelled, requeued = (start(name, SAVES) for name in ("saves", "stops", "cancelled", "requeued"))
    deaf = start("deaf", DEAF)
    for job in (saves, deaf, stops, cancelled, requeued):
        job.listens()
    cluster.signal(saves.id, "USR1")
    cluster.signal(deaf.id, "USR1")
    cluster.signal(stops.id, "INT")
    cluster.run("scancel", cancelled.id)
    cluster.run("scontrol", "requeue", requeued.id)

    assert "done" in done.ends("COMPLETED", 1)
    assert "status 2" in mend.ends("FAILED", 1)
    assert "failed (status 1) at start 1" in once.ends("COMPLETED", 2)
    assert "failure 2, of which 1 were forgiven" in fails.ends("FAILED", 2)
    assert (fails.folder / f"failures-{fails.id}.txt").read_text().count("status 1") == 2
    assert "failed (status 137)" in dies.ends("FAILED", 1)
    for job in (saves, deaf):
        assert "interrupted: back into the queue" in job.ends("COMPLETED", 2)
        assert not list(job.folder.glob("failures-*"))
    assert "stopped (status 75)" in stops.ends("FAILED", 1)
    assert "cancelled (status 75)" in cancelled.ends("CANCELLED", 1)
    assert "SLURM has put it back" in requeued.ends("COMPLETED", 2)


def test_a_job_that_is_preempted_comes_back_once_whether_it_has_saved_or_not(cluster, start):
    saves, slow = start("saves", SAVES, "--partition=low"), start("slow", SLOW, "--partition=low")
    saves.listens()
    slow.listens()
    cluster.run("srun", "--partition=high", "--nodes=2", "--exclusive", "true")
    assert "interrupted: back into the queue" in saves.ends("COMPLETED", 2)
    slow.ends("COMPLETED", 2)


def test_inside_an_allocation_the_command_starts_the_ranks_itself(cluster, tmp_path):
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(f"#!/bin/bash\necho $SLURM_PROCID of $SLURM_STEP_NUM_TASKS on $(hostname) >>{tmp_path}/ranks; exit 75\n")
    stand_in.chmod(0o755)
    words = [sys.executable, "-m", "bgetrain", "stage=finetune", "data=jsonl", "data.files=[x]", "model.path=x"]
    words += ["cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=0", f"cluster.python={stand_in}"]
    said = cluster.run("salloc", "--nodes=2", *words, f"output_dir={tmp_path}/out", cwd=tmp_path, check=False)
    assert said.returncode == 75, said.stderr
    assert sorted((tmp_path / "ranks").read_text().splitlines()) == ["0 of 2 on node1", "1 of 2 on node2"]
