"""A SLURM cluster of two nodes on this machine; `cluster.sh` says what it is made of."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "ip", "unshare", "nsenter")
# a job is in none of these any more
LASTING = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL"}
# of a launcher that runs these tests, or of a job in which they run
FOREIGN = re.compile(r"SLURM|SBATCH|SALLOC|SRUN|SQUEUE|BGETRAIN|RANK$|LOCAL_|WORLD_SIZE|MASTER_|TORCHELASTIC|PYTEST")
START_SECONDS = 60


def reason_to_skip() -> str | None:
    """Why no cluster can be had here; None: one can."""
    if sys.platform != "linux":
        return "SLURM runs on Linux"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if missing:
        return f"not installed: {' '.join(missing)}; `make test-slurm` installs them on Debian"
    if os.geteuid():
        return "a cluster with a network for each node needs root"
    apart = ["unshare", "--fork", "--pid", "--net", "--uts", "--mount", "--mount-proc"]
    machine = "hostname login && ip link add name nodes type bridge"
    tried = subprocess.run([*apart, "sh", "-c", machine], capture_output=True, text=True)
    return f"namespaces are refused here: {tried.stderr.strip()}" if tried.returncode else None


class Cluster:
    """Starts when made, ends with `stop`, or with this process, however that ends.

    Args:
        base: its folder.

    Attributes:
        base: its folder: configuration, logs.
        environment: of a command on the login machine, from which jobs have theirs.

    Raises:
        RuntimeError: it did not start, with its logs.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.killed: set[int] = set()
        own = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
        bin_folder = os.path.dirname(sys.executable)
        self.environment = {
            **own,
            "SLURM_CONF": str(base / "slurm.conf"),
            "PATH": f"{bin_folder}:{own['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        }
        self.process = subprocess.Popen(
            [HERE / "cluster.sh", "up"],
            env={**self.environment, "BASE": str(base)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,  # a Ctrl-C reaches the tests alone, which then stop it
        )
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        answer = self.process.stdout.readline()
        timer.cancel()
        if answer != "ready\n":
            self.stop()
            raise RuntimeError(f"the cluster did not start:\n{self.process.stderr.read()}")

    def stop(self) -> None:
        """Ends every process of it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def start(self, *words: str, cwd: Path | None = None, env: Mapping[str, str] = {}) -> subprocess.Popen:
        """Starts a command on the login machine, with pipes for its output, as a group of its own; it ends with these tests."""
        enter = ["nsenter", "--target", str(self.process.pid), "--net", "--uts", "--mount", f"--wd={cwd or self.base}"]
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *enter, *map(str, words)],
            env={**self.environment, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *words: str, cwd: Path | None = None, seconds: float = 60, check: bool = True, env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess:
        """Runs a command on the login machine.

        Args:
            words: of it.
            cwd: where; None: in the folder of the cluster.
            seconds: that it may take.
            check: a status other than 0 fails, with all that was printed.
            env: variables besides the cluster's.
        """
        process = self.start(*words, cwd=cwd, env=env)
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise AssertionError(f"still running after {seconds:g} s: {words}\n{out[-4000:]}\n{err[-4000:]}") from None
        if check and process.returncode:
            raise AssertionError(f"status {process.returncode}: {words}\n{out[-4000:]}\n{err[-4000:]}")
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def job(self, id: str | int) -> dict[str, str]:
        """What the controller shows of a job, or of a task of an array (`12_3`)."""
        line = self.run("scontrol", "show", "job", "-o", str(id)).stdout.splitlines()[0]
        return dict(re.findall(r"(\S+?)=(.*?)(?= [A-Za-z:/]+=|$)", line.strip()))

    def wait(self, id: str | int, states: Collection[str] = ("COMPLETED",), seconds: float = 120) -> dict[str, str]:
        """Waits for a job to be in one of some states; fails with its output where it ends in another or takes longer."""
        deadline = time.monotonic() + seconds
        while (job := self.job(id))["JobState"] not in states:
            late = time.monotonic() > deadline
            if late or job["JobState"] in LASTING:
                when = f"after {seconds:g} s" if late else "for good"
                raise AssertionError(
                    f"job {id} is {job['JobState']} ({job['Reason']}) {when}, not {' or '.join(states)}\n{self.output(id)}"
                )
            time.sleep(0.1)
        return job

    def output(self, id: str | int) -> str:
        """What a job has written, errors with it."""
        job = self.job(id)
        files = dict.fromkeys(Path(job[name]) for name in ("StdOut", "StdErr") if name in job)
        return "\n".join(file.read_text("utf8", "replace") for file in files if file.exists())

    def signal(self, id: str | int, name: str) -> None:
        """Signals the batch shell of a job, as --signal=B:NAME@SECONDS does."""
        self.run("scancel", "--batch", f"--signal={name}", str(id))

    def kill_node(self, number: int) -> None:
        """Ends all that runs on a node, at once, as when its power is cut."""
        self._order(f"kill-node {number}")
        self.killed.add(number)

    def start_node(self, number: int) -> None:
        """Starts a node that was killed; the controller sees it within a second or two."""
        self._order(f"start-node {number}")
        self.killed.discard(number)

    def _order(self, line: str) -> None:
        print(line, file=self.process.stdin)
        answer = self.process.stdout.readline()
        assert answer == f"{line}: done\n", answer

    def idle(self) -> bool:
        """Whether every node waits for work."""
        return set(self.run("sinfo", "-h", "-N", "-o", "%T").stdout.split()) == {"idle"}

    def clear(self) -> None:
        """Starts nodes that a test has killed, cancels what it has left, and waits for the nodes to be free."""
        for number in sorted(self.killed):
            self.start_node(number)
        self.run("scancel", "--user=root", "--quiet", check=False)
        deadline = time.monotonic() + 30
        while not self.idle():
            assert time.monotonic() < deadline, self.run("sinfo", "-N", "-l").stdout + self.run("squeue").stdout
            time.sleep(0.1)


@contextlib.contextmanager
def running():
    """A cluster; its folder is BGETRAIN_SLURM_BASE, which is kept, or one that goes with it."""
    given = os.environ.get("BGETRAIN_SLURM_BASE")
    base = Path(given or tempfile.mkdtemp(prefix="bgetrain-slurm-", dir="/tmp"))  # short: a socket's path has 108 characters
    try:
        cluster = Cluster(base)
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        if given is None:
            shutil.rmtree(base, ignore_errors=True)
