"""Signals: heeded once, obeyed at once the second time, heard also where the main thread runs no Python."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bgetrain.engine import interrupts

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
# select() of the C library, held by a caller that never looks at signals, as a collective or a backward pass does
HEAD = """
import ctypes, os, signal, sys, time
from bgetrain.engine import interrupts
def blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.SIGNALS)  # so that other threads get them and the call goes on
    ctypes.CDLL(None).sleep(60)
"""


def started(script: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HEAD + script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_heard_and_the_second_ends_a_process_whose_main_thread_is_in_c(number):
    process = started("with interrupts.asked_to_stop():\n    print('ready', flush=True)\n    blocked()\n")
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(20) == -number  # it would sleep for 60 s


def test_one_signal_that_comes_twice_in_a_moment_is_one():
    """As `timeout` sends it, to its child and then to the group of it."""
    script = "with interrupts.asked_to_stop():\n    print('ready', flush=True)\n    time.sleep(1)\nsys.exit(75)\n"
    process = started(script)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert process.wait(20) == 75


def test_a_second_signal_of_another_kind_ends_the_process_as_well():
    process = started("with interrupts.asked_to_stop():\n    print('ready', flush=True)\n    blocked()\n")
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def test_under_srun_a_second_signal_is_slurms_and_cuts_nothing_short(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    process = started("with interrupts.asked_to_stop():\n    print('ready', flush=True)\n    time.sleep(2)\nsys.exit(75)\n")
    for number in (signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.5)
    assert process.wait(20) == 75


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_command_line_is_imported_is_an_interruption(number, tmp_path):
    (tmp_path / "omegaconf.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(60)\n")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    words = [sys.executable, "-m", "bgetrain", "stage=finetune"]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(20) == 75


def test_before_the_loop_a_main_thread_that_is_in_c_is_given_up():
    process = started(
        "interrupts.DEAF_SECONDS = 0.5\n"
        "with interrupts.heeded(lambda: os._exit(75)):\n    print('ready', flush=True)\n    blocked()\n"
    )
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 75


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_loop_a_signal_raises_keyboard_interrupt(number):
    earlier = signal.getsignal(number)
    with interrupts.heeded(lambda: None), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signal.getsignal(number) is earlier


@pytest.mark.parametrize("number", SIGNALS)
def test_asked_to_stop_sets_its_event_at_once_and_leaves_nothing_behind(number):
    earlier = [signal.getsignal(each) for each in SIGNALS]
    with interrupts.asked_to_stop() as asked:
        assert not asked.is_set()
        signal.raise_signal(number)
        assert asked.is_set()
    assert [signal.getsignal(each) for each in SIGNALS] == earlier
    assert signal.set_wakeup_fd(-1) == -1


def test_the_signal_that_ends_a_forked_process_is_not_taken_for_this_one(monkeypatch):
    monkeypatch.setattr(interrupts, "end_by", lambda number: os._exit(3))
    heard = []
    with interrupts.heard(lambda number, frame: None, lambda number: heard.append(number) if number else None):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"forked")
            time.sleep(60)
            os._exit(0)
        assert os.read(reading, 6) == b"forked"
        for _ in range(2):
            os.kill(child, signal.SIGTERM)
            time.sleep(0.3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert heard == []


# --- real training ----------------------------------------------------------------------------------------------------


def environment(rank: int, port: int) -> dict[str, str]:
    here = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {**os.environ, **{name: str(value) for name, value in here.items()}}


def lines(output: Path) -> list[dict]:
    path = output / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ranks_with(text: str) -> list[int]:
    """Processes that work for `text`: ranks, their launcher, their workers."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if text in line and line.split()[1][0] not in "ZX"]


def trained(processes: list[subprocess.Popen], output: Path, step: int) -> None:
    deadline = time.monotonic() + 200
    while len(lines(output)) < step:
        assert all(each.poll() is None for each in processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [True, False], ids=["our launcher", "no launcher"])
def test_sigusr1_to_one_rank_stops_both_after_the_same_step_saved_and_the_same_command_goes_on(
    launcher, model_folder, beir_folder, tmp_path
):
    output, total = tmp_path / "out", 150
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "bgetrain", "stage=finetune", f"model.path={model_folder}", "model.dropout=0", "data=beir",
        f"data.path={beir_folder}", "data.query_max_len=16", "data.passage_max_len=32", "global_batch=8", "group_size=2",
        "precision=fp32", "save_every=1000", "log_every=1", f"total_steps={total}", f"output_dir={output}", "num_processes=2",
    ]  # fmt: skip
    said = tmp_path / "said"

    def start() -> list[subprocess.Popen]:
        places = [None] if launcher else [environment(rank, port) for rank in range(2)]
        return [subprocess.Popen(command, env=env, stdout=said.open("a"), stderr=subprocess.STDOUT) for env in places]

    processes = start()
    trained(processes, output, 3)
    second = processes[-1].pid
    if launcher:
        second = next(
            pid for pid in ranks_with(str(output)) if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
        )
    os.kill(second, signal.SIGUSR1)
    assert [each.wait(100) for each in processes] == [75] * len(processes), said.read_text()
    assert ranks_with(str(output)) == []
    last = lines(output)[-1]["step"]
    assert last < total
    told = [line for line in said.read_text().splitlines() if "interrupted" in line]
    assert told == [f"interrupted, step {last} of {total} is saved in {output}/checkpoints: the same command goes on from there"]
    assert "Traceback" not in said.read_text()
    processes = start()
    assert [each.wait(200) for each in processes] == [0] * len(processes), said.read_text()
    assert [each["step"] for each in lines(output)] == list(range(1, total + 1))
