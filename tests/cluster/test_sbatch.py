"""job.sbatch: its text, and what it does with programs that stand in for SLURM's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bgetrain.cluster import sbatch
from bgetrain.cluster.place import Command
from bgetrain.selection import CONF

ODD = ["stage=finetune", "data.query_instruction=\"say: 'it' $HOME `id`; #\"", "问=搜索 \\n", 'a="two\nlines"', "@RUN@=*"]
SHOW = """#!/bin/bash
[ "$1" != requeue ] || { echo "$2" >>requeued; [ ! -e refuses ] || { echo >&2 "Requeue is disabled"; exit 1; }; exit 0; }
cat facts 2>/dev/null || exit 1
"""


def command(folder: Path, *arguments: str, count: int | None = None) -> Command:
    return Command(list(arguments) or ["stage=finetune"], "finetune", str(folder), count, False)


def request(**given) -> dict:
    """The keys of conf/cluster/slurm.yaml, some of them changed."""
    defaults = yaml.safe_load((CONF / "cluster/slurm.yaml").read_text("utf8"))
    assert given.keys() <= defaults.keys()
    return {**defaults, "python": "python3", **given}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Site:
    """A folder with programs in place of SLURM's: what is asked of scontrol stands in `requeued`, what it tells in `facts`.

    Args:
        folder: empty.
        srun: what the program of that name does.
    """

    def __init__(self, folder: Path, srun: str) -> None:
        self.folder, self.programs = folder, folder / "bin"
        self.programs.mkdir()
        for name, text in {"srun": f"#!/bin/bash\n{srun}\n", "scontrol": SHOW, "sinfo": "#!/bin/bash\ncat nodes\n"}.items():
            (self.programs / name).write_text(text, "utf8")
            (self.programs / name).chmod(0o755)
        self.tell("JobState=RUNNING Reason=None Restarts=0 PreemptTime=None")

    def tell(self, facts: str) -> None:
        (self.folder / "facts").write_text(facts)

    def start(self, script: Path, **variables: str) -> subprocess.Popen:
        path = f"{self.programs}:{os.environ['PATH']}"
        own = {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", **variables}
        return subprocess.Popen(["bash", str(script)], env=own, cwd=self.folder, stdout=subprocess.PIPE, text=True)

    def run(self, script: Path, **variables: str) -> tuple[int, str, list[str]]:
        """Status, what was printed, and the jobs that were to be requeued."""
        process = self.start(script, **variables)
        out, _ = process.communicate(timeout=20)
        return process.returncode, out, self.requeued()

    def requeued(self) -> list[str]:
        path = self.folder / "requeued"
        return path.read_text().split() if path.exists() else []


def test_the_script_is_this_text(here):
    given = request(nodes=6, cpus_per_task=12, partition="gpu", time="1-00:00:00", modules=["cuda/12.4"], setup=["source a"])
    path = sbatch.write(command(here / "out", "stage=pairs", "cluster=slurm", "output_dir=out"), given)
    assert path == here / "out/job.sbatch"
    expected = (Path(__file__).parent / "job.sbatch").read_text("utf8")
    assert path.read_text("utf8").replace(str(here), "/work/me") == expected


LINES = [
    ({"gpu_type": "a100"}, "#SBATCH --gpus-per-node=a100:8"),
    ({"gpu_request": "gres"}, "#SBATCH --gres=gpu:8"),
    ({"gpu_request": "gres", "gpu_type": "h100", "gpus_per_node": 4}, "#SBATCH --gres=gpu:h100:4"),
    ({"nodes": 3, "tasks_per_node": 4}, "    srun --nodes=3 --ntasks=12 --ntasks-per-node=4 \\"),
    ({"gpus_per_node": 0}, "    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 \\"),
    ({"cpus_per_task": 5}, "#SBATCH --cpus-per-task=5"),
    ({"cpus_per_task": 5}, "    srun --nodes=1 --ntasks=8 --ntasks-per-node=8 --cpus-per-task=5 \\"),
    ({"memory": "200G"}, "#SBATCH --mem=200G"),
    ({"exclusive": True}, "#SBATCH --exclusive"),
    ({"time": 90}, "#SBATCH --time=90"),
    ({"partition": "gpu"}, "#SBATCH --partition=gpu"),
    ({"account": "me"}, "#SBATCH --account=me"),
    ({"qos": "long"}, "#SBATCH --qos=long"),
    ({"reservation": "mine"}, "#SBATCH --reservation=mine"),
    ({"constraint": "a100&nvlink"}, '#SBATCH --constraint="a100&nvlink"'),
    ({"job_name": "try 1"}, '#SBATCH --job-name="try 1"'),
    ({"modules": ["cuda/12.4", "gcc"]}, "module load cuda/12.4 gcc"),
    ({"environment": {"A": "b c", "N": 3}}, "export A='b c'"),
    ({"setup": ["source a && b"]}, "source a && b"),
    ({"sbatch_lines": ["--mail-type=FAIL"]}, "#SBATCH --mail-type=FAIL"),
    ({"srun_flags": ["--cpu-bind=none", "-v"]}, "        --cpu-bind=none -v \\"),
    ({"container": "a/b:c"}, "        --container-image=a/b:c --container-workdir=HERE \\"),
    ({"container": "a", "container_mounts": ["/x:/y"]}, "        --container-mounts=HERE:HERE,HERE/out:HERE/out,/x:/y \\"),
    (
        {"container": "a.sif", "container_with": "apptainer", "container_mounts": ["/x:/y"]},
        "        apptainer exec --nv --pwd HERE --bind HERE:HERE --bind HERE/out:HERE/out --bind /x:/y a.sif \\",
    ),
    ({"container": "a", "python": "python3.12"}, "        python3.12 -m bgetrain \\"),
    ({"python": "/venv/bin/python"}, "        /venv/bin/python -m bgetrain \\"),
    ({"save_before_seconds": 300}, "#SBATCH --signal=B:USR1@300"),
    ({"max_restarts": 9}, '[ "$count" -gt 9 ] || back "failure $count, of which 9 are forgiven"'),
    ({"heartbeat_seconds": 7.5}, "        --kill-on-bad-exit=0 --wait=68 --export=ALL \\"),
    ({"port": 29500}, "export MASTER_PORT=29500"),
]
ELSEWHERE = {"_target_", "timeout_minutes", "array_parallel"}  # read by a rank, like the heartbeat, and by sbatch's --array


def test_every_key_is_tried():
    assert {key for given, _ in LINES for key in given} == set(request()) - ELSEWHERE


@pytest.mark.parametrize(("given", "line"), LINES, ids=lambda each: str(each)[:40])
def test_a_key_stands_in_the_script(here, given, line):
    path = sbatch.write(command(here / "out"), request(**given))
    subprocess.run(["bash", "-n", path], check=True)
    assert line.replace("HERE", str(here)) in path.read_text("utf8").splitlines()
    assert line.replace("HERE", str(here)) not in sbatch.write(command(here / "out"), request()).read_text("utf8").splitlines()


def test_no_gpus_are_asked_for_where_there_are_none_or_the_partition_gives_them(here):
    for given in ({"gpus_per_node": 0}, {"gpu_request": "none"}):
        text = sbatch.write(command(here / "out"), request(**given)).read_text("utf8")
        assert "--gpus" not in text
        assert "--gres" not in text


def test_python_is_this_one_and_in_a_container_that_of_the_image(here):
    assert f"\n        {sys.executable} -m bgetrain" in sbatch.write(command(here / "out"), request(python=None)).read_text(
        "utf8"
    )
    inside = request(python=None, container="image")
    assert "\n        python3 -m bgetrain" in sbatch.write(command(here / "out"), inside).read_text("utf8")


def test_a_stage_of_one_process_gets_one_task_and_one_gpu(here):
    text = sbatch.write(command(here / "out", count=1), request(nodes=4)).read_text("utf8")
    assert "srun --nodes=1 --ntasks=1 --ntasks-per-node=1 " in text
    assert "#SBATCH --gpus-per-node=1\n" in text
    assert "--gpus" not in sbatch.write(command(here / "out", count=1), request(gpus_per_node=0)).read_text("utf8")


def test_overrides_and_folders_survive_the_shell(here):
    folder = here / "out 断 'x' \"y\" $z %j"
    site = Site(here, 'printf "%s\\0" "${@:10}" >given')
    script = sbatch.write(command(folder, *ODD), request(environment={"A": "$b 'c'"}))
    assert site.run(script)[0] == 0
    assert (here / "given").read_text("utf8").split("\0")[:-1] == ODD
    assert f'#SBATCH --output="{here}/out 断 \'x\' \\"y\\" $z %%j/slurm-%j.out"' in script.read_text("utf8")


ENDS = [
    # status of srun, what SLURM says, its nodes; status of the script, is it requeued, what it says
    (0, "JobState=RUNNING Restarts=0", "", 0, False, "done"),
    (2, "JobState=RUNNING Restarts=0", "", 2, False, "mended"),
    (75, "JobState=RUNNING Restarts=0", "", 75, True, "interrupted"),
    (75, "", "", 75, True, "interrupted"),
    (75, "JobState=COMPLETING Reason=None Restarts=0", "", 75, False, "cancelled"),
    (75, "JobState=COMPLETING Reason=TimeLimit Restarts=0", "", 75, True, "time is up"),
    (0, "JobState=COMPLETING Reason=TimeLimit Restarts=0", "", 0, True, "time is up"),  # srun gave the ranks up
    (75, "JobState=COMPLETING Reason=None Restarts=1", "", 75, False, "SLURM has put it back"),
    (0, "JobState=COMPLETING Reason=None PreemptTime=2026-01-01 Restarts=0", "", 0, True, "pre-empted"),  # PreemptMode=CANCEL
    (75, "JobState=COMPLETING Reason=None PreemptTime=2026-01-01 Restarts=1", "", 75, False, "SLURM has put it back"),
    (143, "JobState=RUNNING PreemptTime=2026-01-01 Restarts=0", "", 143, True, "pre-empted"),
    (1, "JobState=RUNNING PreemptTime=None Restarts=0", "node1 alloc\nnode2 alloc*\n", 1, True, "node2 was lost"),
    (1, "JobState=RUNNING PreemptTime=None Restarts=0", "node1 alloc\n", 1, True, "failure 1"),
    (137, "JobState=RUNNING Restarts=0", "", 137, True, "failure 1"),
    (138, "JobState=RUNNING Restarts=0", "", 138, True, "failure 1"),  # a signal that nobody has sent through the script
]


@pytest.mark.parametrize(("status", "facts", "nodes", "left", "again", "words"), ENDS)
def test_the_end_of_the_ranks_decides_what_follows(here, status, facts, nodes, left, again, words):
    site = Site(here, f"exit {status}")
    site.tell(f"JobId=7 {facts} Requeue=1") if facts else (here / "facts").unlink()
    (here / "nodes").write_text(nodes)
    found, said, requeued = site.run(sbatch.write(command(here / "out"), request()))
    assert (found, requeued) == (left, ["7"] * again)
    assert words in said
    assert (here / "out/failures-7.txt").exists() == words.startswith("failure")


def test_failures_are_counted_for_each_job(here):
    site = Site(here, "exit 1")
    script = sbatch.write(command(here / "out"), request(max_restarts=2))
    for start in range(3):
        status, said, _ = site.run(script, SLURM_RESTART_COUNT=str(start))
        assert (status, f"start {start + 1} on" in said) == (1, True)
    assert "it ends" in said
    assert site.requeued() == ["7", "7"]
    site.run(script, SLURM_JOB_ID="8")
    assert site.requeued() == ["7", "7", "8"]


def test_a_site_that_refuses_to_requeue_is_quoted(here):
    site = Site(here, "exit 75")
    (here / "refuses").touch()
    status, said, _ = site.run(sbatch.write(command(here / "out"), request()))
    assert (status, "cannot be put back (Requeue is disabled)" in said) == (75, True)


def test_a_requeue_that_was_killed_by_what_it_brought_about_was_none_that_was_refused(here):
    site = Site(here, "exit 75")
    (site.programs / "scontrol").write_text("""#!/bin/bash
        [ "$1" != requeue ] || { echo "JobState=PENDING Restarts=1" >facts; exit 143; }
        cat facts""")
    status, said, _ = site.run(sbatch.write(command(here / "out"), request()))
    assert (status, "interrupted: back into the queue" in said, "cannot" in said) == (75, True, False)


def test_a_job_that_is_interrupted_before_it_has_kept_anything_ends_at_last(here):
    site = Site(here, "sleep 0.02; touch out/config.yaml out/metrics.jsonl; [ ! -e moves ] || touch out/part-1; exit 75")
    script = sbatch.write(command(here / "out"), request(max_restarts=1))
    (here / "moves").touch()
    for _ in range(3):
        site.run(script)
    assert len(site.requeued()) == 3
    (here / "moves").unlink()
    time.sleep(0.02)
    site.run(script)
    assert len(site.requeued()) == 4
    status, said, requeued = site.run(script)
    assert (status, "interrupted 2 times in a row" in said, len(requeued)) == (75, True, 4)


@pytest.mark.parametrize(
    ("number", "rank", "status", "again"),
    [
        (signal.SIGUSR1, "trap 'exit 75' USR1", 75, True),
        (signal.SIGUSR1, "trap 'exit 0' USR1", 0, False),  # it was at its end
        (signal.SIGUSR1, ":", 75, True),  # it was not yet listening, and died of it
        (signal.SIGINT, "trap 'exit 75' USR1", 75, False),
        (signal.SIGTERM, "trap 'exit 75' USR1", 75, True),
    ],
)
def test_a_signal_reaches_the_ranks_and_the_script_waits_for_them(here, number, rank, status, again):
    wait = f"{rank}\ntouch listens; for each in $(seq 200); do sleep 0.05; done"
    site = Site(here, wait)
    process = site.start(sbatch.write(command(here / "out"), request()))
    while not (here / "listens").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert (process.returncode, site.requeued()) == (status, ["7"] * again)


def test_at_a_time_limit_the_job_is_put_back_before_the_ranks_have_saved(here):
    site = Site(here, "trap '' USR1\ntouch listens; exec sleep 20")
    process = site.start(sbatch.write(command(here / "out"), request()))
    while not (here / "listens").exists():
        time.sleep(0.02)
    site.tell("JobId=7 JobState=COMPLETING Reason=TimeLimit Restarts=0 Requeue=1")
    process.send_signal(signal.SIGTERM)
    while not site.requeued():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()  # as SLURM does after KillWait
    process.wait()
    assert site.requeued() == ["7"]


def test_a_signal_during_set_up_starts_no_ranks(here):
    site = Site(here, "touch started")
    script = sbatch.write(command(here / "out"), request(setup=["touch sets-up", "sleep 0.5"]))
    process = site.start(script)
    while not (here / "sets-up").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=10)
    assert (process.returncode, site.requeued(), (here / "started").exists()) == (75, ["7"], False)


def test_set_up_that_fails_ends_the_job_before_the_ranks(here):
    site = Site(here, "touch started")
    for lines in ({"setup": ["false", "true"]}, {"modules": ["none-such"]}):
        status, _, requeued = site.run(sbatch.write(command(here / "out"), request(**lines)))
        assert status != 0
        assert (requeued, (here / "started").exists()) == ([], False)


@pytest.mark.parametrize("word", ["resume=never", "++resume=never", "+resume='never'"])
def test_resume_never_counts_until_the_job_has_begun_the_run(here, word):
    folder = here / "out"
    folder.mkdir()
    (folder / "config.yaml").touch()  # of an earlier run
    site = Site(
        here, 'printf "%s " "${@:10}" >>given; echo >>given; [ -e stay ] || exit 75; sleep 0.02; touch out/config.yaml; exit 75'
    )
    script = sbatch.write(command(folder, "stage=finetune", word, "seed=1"), request())
    site.run(script)
    (here / "stay").touch()
    site.run(script, SLURM_RESTART_COUNT="1")
    site.run(script, SLURM_RESTART_COUNT="2")
    site.run(script, SLURM_JOB_ID="8")
    never, goes_on = f"stage=finetune {word} seed=1 ", "stage=finetune seed=1 "
    assert (here / "given").read_text().splitlines() == [never, never, goes_on, never]


def test_each_task_of_an_array_runs_its_line(here):
    commands = [command(here / f"sweep/{number}", *ODD[:3], f"seed={number}") for number in range(3)]
    site = Site(here, 'printf "%s\\0" "${@:10}" >given; exit 1')
    script = sbatch.write_array(commands, here / "sweep", request(max_restarts=1))
    assert f"#SBATCH --output={here}/sweep/slurm-%A_%a.out" in script.read_text("utf8")
    assert len((here / "sweep/jobs.txt").read_text("utf8").splitlines()) == 3
    assert site.run(script, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")[2] == ["7_1"]
    assert (here / "given").read_text("utf8").split("\0")[:-1] == commands[1].arguments
    assert (here / "sweep/1/failures-7_1.txt").exists()


def test_a_line_break_is_refused_where_a_line_cannot_hold_it(here):
    with pytest.raises(ValueError, match="line break"):
        sbatch.write_array([command(here / "a", *ODD)], here, request())
    with pytest.raises(ValueError, match="line break"):
        sbatch.write(command(here / "a\nb"), request())
