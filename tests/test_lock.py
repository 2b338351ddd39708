"""Two runs in one output folder: who is refused, who waits, and which lock is a dead run's."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bgetrain import cli, lock, owner

HOLDER = "import sys, time; from bgetrain import lock\nwith lock.held(sys.argv[1]): print('held', flush=True); time.sleep(60)"


def holder(folder: Path) -> subprocess.Popen:
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def left(folder: Path, **changes) -> Path:
    """A lock that nobody holds any more, as a run of this process would have left it but for `changes`."""
    path = folder / ".lock"
    path.write_text(json.dumps({**owner.this_process()._asdict(), **changes}))
    return path


def elsewhere(folder: Path, silent: float) -> Path:
    """The lock of a run on another machine that gave its last sign of life `silent` seconds ago."""
    path = left(folder, host="node7", machine="another", pid=123)
    os.utime(path, (time.time() - silent,) * 2)
    return path


@pytest.fixture
def no_kernel_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.01)


def test_a_folder_in_use_is_refused_at_once_and_is_free_when_its_run_has_ended(tmp_path):
    other = holder(tmp_path)
    facts = json.loads((tmp_path / ".lock").read_text())
    assert {"host", "pid", "started_at", "started"} <= set(facts)
    assert (facts["pid"], facts["host"]) == (other.pid, socket.gethostname())
    line = (
        f"output_dir={tmp_path} is in use by process {other.pid} on {socket.gethostname()} since {facts['started_at']}: "
        "wait for it or stop it, or choose another output_dir"
    )
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"is in use") as said:
        lock.check(str(tmp_path))
    assert str(said.value) == line
    with pytest.raises(ValueError, match=r"is in use") as said, lock.held(str(tmp_path)):
        pass
    assert str(said.value) == line
    assert time.monotonic() - began < lock.GRACE_SECONDS / 2, "its holder is well: there is nothing to wait for"
    assert (tmp_path / ".lock").exists()
    other.send_signal(signal.SIGINT)
    other.wait()
    assert list(tmp_path.iterdir()) == []
    lock.check(str(tmp_path))


def test_a_killed_run_leaves_a_lock_that_is_taken_over_with_a_line_and_removed_at_the_end(tmp_path, capsys):
    other = holder(tmp_path)
    other.kill()
    other.wait()
    lock.check(str(tmp_path))
    assert (tmp_path / ".lock").exists(), "a check leaves all as it is"
    with lock.held(str(tmp_path)):
        said = capsys.readouterr().err
        assert said.startswith(f"output_dir={tmp_path}: process {other.pid} on {socket.gethostname()} since ")
        assert said.endswith(" did not end by itself; its lock is taken over\n")
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    with lock.held(str(tmp_path)):
        pass
    assert capsys.readouterr().err == ""


def test_a_run_that_is_being_killed_is_waited_for(tmp_path, monkeypatch):
    """The kernel holds the locks of a large process while it clears its memory away."""
    other = holder(tmp_path)
    monkeypatch.setattr(lock, "is_alive", lambda owner: False)
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({other.pid}, 9)"])
    with lock.held(str(tmp_path)):
        assert other.wait() == -9
    killer.wait()


def test_a_process_that_was_given_the_number_of_a_dead_one_holds_nothing(tmp_path, no_kernel_locks, capsys):
    left(tmp_path, started=1)
    with lock.held(str(tmp_path)):
        assert "did not end by itself" in capsys.readouterr().err
    left(tmp_path)  # the same process, which lives
    with pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on"), lock.held(str(tmp_path)):
        pass


@pytest.mark.parametrize("kernel", ["free", "none"])
def test_another_machine_s_run_that_lives_is_waited_for_and_then_refused(kernel, tmp_path, request, monkeypatch, capsys):
    if kernel == "none":
        request.getfixturevalue("no_kernel_locks")
    elsewhere(tmp_path, silent=20)
    monkeypatch.setattr(lock, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.6)
    for look in (lock.check, lambda folder: lock.held(folder).__enter__()):
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"is in use by process 123 on node7 since .*: wait for it or stop it"):
            look(str(tmp_path))
        assert time.monotonic() - began > 0.6
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "is in use by process 123 on node7 since" in said
        assert "waiting up to 1 s" in said
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == 123
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_another_machine_s_run_that_dies_while_one_waits_is_taken_over(tmp_path, monkeypatch, capsys):
    elsewhere(tmp_path, silent=59)
    with lock.held(str(tmp_path)):
        assert "process 123 on node7" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kernel", ["free", "busy", "none"])
def test_another_machine_s_run_without_a_sign_of_life_is_taken_over(kernel, tmp_path, request, capsys):
    """Where the kernel still says busy, a server has not yet noticed that the machine is gone."""
    path = elsewhere(tmp_path, silent=61)
    if kernel == "none":
        request.getfixturevalue("no_kernel_locks")
    with path.open() as file:
        if kernel == "busy":
            fcntl.flock(file, fcntl.LOCK_EX)
        lock.check(str(tmp_path))
        with lock.held(str(tmp_path)):
            assert "process 123 on node7 since" in capsys.readouterr().err
            assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_signs_of_life_are_judged_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    elsewhere(tmp_path, silent=61)
    now = time.time()
    monkeypatch.setattr(lock.time, "time", lambda: now - 7200)
    lock.check(str(tmp_path))


def test_a_run_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    with lock.held(str(tmp_path)):
        os.utime(tmp_path / ".lock", (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / ".lock").stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_run_that_was_taken_over_while_it_stood_still_ends_without_touching_the_folder(tmp_path):
    code = HOLDER.replace("from bgetrain import lock", "from bgetrain import lock; lock.BEAT_SECONDS = 0.1")
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert other.stdout
    other.stdout.readline()
    left(tmp_path, pid=1)
    assert other.wait(20) == 2
    assert "was taken over by another run" in other.stderr.read()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == 1


def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path):
    code = HOLDER.replace("print('held'", "os.fork() or time.sleep(20); print('held'").replace("import sys", "import os, sys")
    other = holder_of(code, tmp_path)
    other.kill()
    other.wait()
    with lock.held(str(tmp_path)):
        pass


def holder_of(code: str, folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    return process


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_a_lock_without_a_name_is_nobody_s(tmp_path, text, capsys):
    (tmp_path / ".lock").write_text(text)
    with lock.held(str(tmp_path)):
        assert capsys.readouterr().err == ""


def test_without_kernel_locks_one_of_two_that_find_the_folder_free_at_once_gets_it(tmp_path, no_kernel_locks, monkeypatch):
    def faster(path, *_):
        left(tmp_path, host="node7", machine="another")

    monkeypatch.setattr(lock.time, "sleep", faster)
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.0)
    with pytest.raises(ValueError, match=r"is in use by process .* on node7"), lock.held(str(tmp_path)):
        pass


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, fault):
    def fail(*_):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(ValueError, match=rf"^output_dir={tmp_path}: cannot write here: {os.strerror(fault)}$"):
        lock.held(str(tmp_path)).__enter__()


def test_a_second_command_in_the_folder_of_a_run_is_refused_within_seconds_and_harms_nothing(tmp_path, model_folder, beir_folder):
    arguments = ["stage=finetune", f"model.path={model_folder}", "data=beir", f"data.path={beir_folder}", "data.query_max_len=16",
                 "data.passage_max_len=32", "global_batch=8", "group_size=2", "total_steps=100000", "log_every=1",
                 "save_every=1000", f"output_dir={tmp_path}/out"]  # fmt: skip
    command = [sys.executable, "-m", "bgetrain", *arguments]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(tmp_path / "log").open("w"), start_new_session=True)
    try:
        deadline, metrics = time.monotonic() + 90, tmp_path / "out" / "metrics.jsonl"
        while not metrics.exists() or not metrics.stat().st_size:
            assert first.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        code = "import sys; from bgetrain.cli import main; status = main(sys.argv[1:]); "
        code += "assert 'torch' not in sys.modules; sys.exit(status)"
        for more in ([], ["seed=7"], ["resume=never"], ["num_processes=2"]):
            done = subprocess.run([sys.executable, "-c", code, *arguments, *more], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            assert done.stderr.startswith(f"bgetrain: output_dir={tmp_path}/out is in use by process {first.pid} on ")
            assert done.stderr.count("\n") == 1
        assert first.poll() is None
    finally:
        os.killpg(first.pid, signal.SIGINT)
        status = first.wait(60)
    assert status == 75, (tmp_path / "log").read_text()
    assert not (tmp_path / "out" / ".lock").exists()


def test_ctrl_c_ends_the_wait_for_another_machine(tmp_path, model_folder):
    elsewhere(tmp_path, silent=0)
    command = [
        sys.executable,
        "-m",
        "bgetrain",
        "stage=evaluate",
        "data.path=x",
        f"model.path={model_folder}",
        f"output_dir={tmp_path}",
    ]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waiting.stderr
    assert "waiting up to 90 s" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(10) == 75


def test_the_steps_of_a_recipe_each_take_the_lock_of_their_folder(tmp_path, monkeypatch):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "the fox sleeps in the den"}\n' * 3)
    step = f"[stage=tokenizer, data=text, 'data.files=[{texts}]', model.vocab_size=60, model.hidden_size=16, model.num_layers=1]"
    (tmp_path / "two.yaml").write_text(f"a: {step}\nb: {step}\n")
    seen = []
    real = cli.run_rank

    def spy(cfg, place):
        seen.append((Path(cfg["output_dir"]).name, (Path(cfg["output_dir"]) / ".lock").exists()))
        return real(cfg, place)

    monkeypatch.setattr(cli, "run_rank", spy)
    assert cli.main([f"recipe={tmp_path}/two.yaml", f"output_dir={tmp_path}/out", "data.passage_max_len=64"]) == 0
    assert seen == [("a", True), ("b", True)]
    assert list(tmp_path.rglob(".lock")) == []


def test_a_process_that_ends_itself_from_another_thread_leaves_no_lock(tmp_path):
    script = (
        "import sys, threading, time\nfrom bgetrain import lock\nfrom bgetrain.cluster.local import end_here\n"
        "with lock.held(sys.argv[1]):\n    threading.Thread(target=end_here, args=(7,)).start()\n    time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60).returncode == 7
    assert not (tmp_path / lock.NAME).exists()
