"""The launcher, with small scripts as ranks; none imports torch."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bgetrain.cluster import host, local

LIMITS = {"timeout_minutes": 1.5, "heartbeat_seconds": 60}
HEAD = """import os, signal, sys, time
from bgetrain.cluster import local
local.watch_lifeline()
rank = int(os.environ["RANK"])
"""


def launch(script: str, count: int = 2) -> int:
    """Runs `script` on `count` ranks from this process."""
    command = [sys.executable, "-c", HEAD + textwrap.dedent(script)]
    return local.on_ranks(lambda place: 1, command, count, **LIMITS, port=None)


def launcher(folder: Path, script: str, count: int = 2) -> subprocess.Popen:
    """Starts a launcher of its own; each rank leaves its process id in `folder`."""
    rank = HEAD + f"open(r'{folder}/pid' + str(rank), 'w').write(str(os.getpid()))\n" + textwrap.dedent(script)
    run = f"import sys; from bgetrain.cluster import local\n" \
          f"command = [sys.executable, '-c', {rank!r}]\n" \
          f"sys.exit(local.on_ranks(lambda place: 1, command, {count}, **{LIMITS}, port=None))"  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", run], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def pids(folder: Path, count: int = 2, name: str = "pid") -> list[int]:
    """Waits until each rank has written its process id."""
    paths = [folder / f"{name}{rank}" for rank in range(count)]
    wait_until(lambda: all(path.exists() and path.read_text() for path in paths), 20)
    return [int(path.read_text()) for path in paths]


def wait_until(holds, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("statuses", "whole"),
    [((0, 0), 0), ((0, 75), 75), ((75, 75), 75), ((2, 2), 2), ((2, 0), 2), ((75, 1), 1), ((1, 0), 1), ((1, 2), 2), ((2, 75), 2)],
)
def test_statuses_of_ranks_combine(statuses, whole):
    assert launch(f"sys.exit({list(statuses)}[rank])") == whole


def test_a_rank_killed_by_a_signal_is_a_crash_that_says_so(capfd):
    assert launch("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)") == 1
    said = capfd.readouterr().err
    known = rf"bgetrain: rank 1 \({re.escape(socket.gethostname())}, pid \d+\) was ended by SIGKILL: "
    assert re.fullmatch(known + r"the same command goes on from what was saved\n", said)


def test_a_rank_knows_that_another_has_said_why_the_run_ends(capfd):
    script = """
        if rank:
            while not local.told(): time.sleep(0.01)
            sys.exit(75)
        assert not local.told()
        local.complain('why')
        assert not local.told()
        sys.exit(2)
    """
    assert launch(script) == 2
    assert capfd.readouterr().err == "why\n"


def test_a_failing_rank_ends_the_others(tmp_path):
    script = f"""
        open(r'{tmp_path}/pid' + str(rank), 'w').write(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while rank and not os.path.exists(r'{tmp_path}/pid0'): time.sleep(0.01)
        sys.exit(2) if rank else time.sleep(60)
    """
    began = time.monotonic()
    assert launch(script) == 2
    assert time.monotonic() - began < 30  # they would sleep for 60
    assert not any(map(alive, pids(tmp_path)))


def test_ranks_are_told_who_they_are(tmp_path):
    launch(f"open(r'{tmp_path}/' + str(rank), 'w').write(' '.join(os.environ[name] for name in "
           "('WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'OMP_WAIT_POLICY')))", 3)  # fmt: skip
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"3 {rank} 3 127.0.0.1 passive" for rank in range(3)]


def test_an_interrupt_reaches_each_rank_once_and_the_run_ends_with_75(tmp_path):
    running = launcher(
        tmp_path,
        f"""
        heard = []
        signal.signal(signal.SIGINT, lambda *_: heard.append(1))
        open(r'{tmp_path}/ready' + str(rank), 'w').write('1')
        deadline = time.monotonic() + 30
        while not heard and time.monotonic() < deadline: time.sleep(0.02)
        time.sleep(0.5)
        open(r'{tmp_path}/heard' + str(rank), 'w').write(str(len(heard)))
        sys.exit(75)
        """,
    )
    pids(tmp_path, name="ready")
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 75
    assert pids(tmp_path, name="heard") == [1, 1]


def test_a_second_interrupt_ends_every_rank_and_their_children_within_5_seconds(tmp_path):
    running = launcher(
        tmp_path,
        f"""
        import subprocess
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
        open(r'{tmp_path}/child' + str(rank), 'w').write(str(child.pid))
        time.sleep(60)
        """,
    )
    processes = pids(tmp_path) + pids(tmp_path, name="child")
    running.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert all(map(alive, processes))
    running.send_signal(signal.SIGINT)
    running.wait(5)
    assert not any(map(alive, processes))


def test_under_srun_a_second_signal_leaves_the_ranks_to_save(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    running = launcher(
        tmp_path,
        f"""
        heard = []
        for number in (signal.SIGUSR1, signal.SIGTERM): signal.signal(number, lambda number, _: heard.append(number))
        open(r'{tmp_path}/ready' + str(rank), 'w').write('1')
        while not heard: time.sleep(0.02)
        time.sleep(1.5)
        sys.exit(75 if len(heard) == 1 else 1)
        """,
    )
    pids(tmp_path, name="ready")
    for number in (signal.SIGUSR1, signal.SIGTERM):  # as before a time limit, and at it
        running.send_signal(number)
        time.sleep(0.5)
    assert running.wait(10) == 75


def test_a_rank_that_dies_of_the_interrupt_counts_as_interrupted(tmp_path):
    running = launcher(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(60)")
    pids(tmp_path)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 75


def test_a_rank_that_waits_for_an_interrupted_one_is_ended(tmp_path):
    running = launcher(
        tmp_path,
        f"""
        signal.signal(signal.SIGINT, signal.SIG_IGN if rank else lambda *_: sys.exit(75))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(r'{tmp_path}/ready' + str(rank), 'w').write('1')
        time.sleep(60)
        """,
    )
    pids(tmp_path, name="ready")
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 75
    assert not any(map(alive, pids(tmp_path)))


@pytest.mark.parametrize("ignored", ["signal.SIGTERM", "signal.SIGINT"])
def test_the_death_of_the_launcher_ends_every_rank_and_their_children_within_5_seconds(tmp_path, ignored):
    running = launcher(
        tmp_path,
        f"""
        import subprocess
        signal.signal({ignored}, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
        open(r'{tmp_path}/child' + str(rank), 'w').write(str(child.pid))
        while True: sum(range(1000))
        """,
    )
    processes = pids(tmp_path) + pids(tmp_path, name="child")
    running.kill()
    running.wait()
    wait_until(lambda: not any(map(alive, processes)), 5)


def test_equal_complaints_are_said_once_and_different_ones_each(capfd):
    assert launch("local.complain('the same'); sys.exit(2)", 3) == 2
    assert capfd.readouterr().err == "the same\n"
    assert launch("local.complain(f'rank {rank} says'); sys.exit(2)", 2) == 2
    assert sorted(capfd.readouterr().err.split("\n")) == ["", "rank 0 says", "rank 1 says"]


def test_a_port_in_use_is_refused_in_one_line_before_a_rank_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^cluster\.port={port} cannot be used \(Address already in use\): .*null"):
            local.on_ranks(lambda place: 1, ["/nonexistent"], 2, **LIMITS, port=port)
    assert host.claimed_port(port) == port


def test_a_port_beyond_65535_is_refused():
    with pytest.raises(ValueError, match=r"^cluster\.port=70000 cannot be used"):
        local.on_ranks(lambda place: 1, ["/nonexistent"], 2, **LIMITS, port=70000)


def test_ranks_that_torchrun_started_are_joined(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    places = []
    status = local.on_ranks(lambda place: places.append(place) or 75, ["/nonexistent"], 8, **LIMITS, port=None)
    assert (status, places) == (
        75,
        [local.Place(rank=3, size=4, local_rank=1, local_size=2, **LIMITS)],
    )


def test_one_process_runs_here_without_a_launcher(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    places = []
    assert local.on_ranks(lambda place: places.append(place) or 0, ["/nonexistent"], 1, **LIMITS, port=None) == 0
    assert places == [local.Place(0, 1, 0, 1, **LIMITS)]
    assert "RANK" not in os.environ
