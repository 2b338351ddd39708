"""The cluster that the other tests of this folder stand on: separate machines, as far as a program can tell."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import HERE

# rank 0 listens, rank 1 calls it at the address given; both end with status 0 where they meet
MEET = """
import os, socket, sys
address = (sys.argv[1], 29400)
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server(("", address[1])) as server:
        server.settimeout(3)
        server.accept()
else:
    for _ in range(20):
        try:
            socket.create_connection(address, 1).close()
            break
        except OSError:
            __import__("time").sleep(0.05)
    else:
        sys.exit("nobody there")
"""


def test_two_nodes_with_names_of_their_own_answer(cluster):
    said = cluster.run("srun", "-N2", "--ntasks-per-node=2", "bash", "-c", "echo $SLURM_PROCID $SLURM_NODEID $(hostname)")
    assert sorted(said.stdout.splitlines()) == ["0 0 node1", "1 0 node1", "2 1 node2", "3 1 node2"]


def test_a_rank_at_localhost_is_not_found_from_another_node(cluster):
    words = ("srun", "--nodes=2", "--ntasks=2", sys.executable, "-c", MEET)
    assert cluster.run(*words, "node1").returncode == 0
    assert cluster.run(*words, "localhost", check=False).returncode != 0


def test_a_job_ends_in_the_state_that_its_script_asks_for(cluster, tmp_path):
    (tmp_path / "job").write_text("#!/bin/bash\necho on $(hostname)\nexit $1\n")
    good, bad = (
        cluster.run("sbatch", "--parsable", tmp_path / "job", status, cwd=tmp_path).stdout.strip() for status in ("0", "3")
    )
    assert cluster.wait(good)["ExitCode"] == "0:0"
    assert cluster.wait(bad, {"FAILED"})["ExitCode"] == "3:0"
    assert cluster.output(good) == "on node1\n"


def test_nothing_is_left_when_it_is_killed(cluster):
    """Another cluster beside the one of these tests, whose starting process dies without a word."""
    base = Path(f"/tmp/bgetrain-slurm-{os.getpid()}")
    before = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout, Path("/proc/mounts").read_text()
    code = f"import sys, pathlib; sys.path.insert(0, {str(HERE)!r}); from cluster import Cluster\n"
    code += f"c = Cluster(pathlib.Path({str(base)!r})); c.start('srun', '-N2', 'sleep', '60'); print('up', flush=True); input()"
    own = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert own.stdout.readline() == "up\n"
        assert processes_of(base)
    finally:
        own.send_signal(signal.SIGKILL)
        own.wait()
    for _ in range(100):
        if not processes_of(base):
            break
        time.sleep(0.05)
    assert processes_of(base) == []
    after = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout, Path("/proc/mounts").read_text()
    assert after == before
    subprocess.run(["rm", "-r", base], check=True)


def processes_of(base):
    """Processes with a cluster's configuration in their environment; those that have ended have none."""
    found = []
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if each.name.isdigit() and f"SLURM_CONF={base}/slurm.conf".encode() in (each / "environ").read_bytes():
                found.append(each.name)
    return found
