"""Loggers on a disk that is full, away or back again: the run goes on, and says what is missing."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bgetrain import cli
from bgetrain.logger import jsonl


class Disk:
    """os.write with `room` bytes left."""

    def __init__(self, monkeypatch, fault: int = errno.ENOSPC) -> None:
        self.room, self.fault, self.real = 10**9, fault, os.write
        monkeypatch.setattr(jsonl.os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(self.fault, os.strerror(self.fault))
        done = self.real(descriptor, data[: self.room])
        self.room -= done
        return done


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text("utf8").splitlines()]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE, errno.EDQUOT])
@pytest.mark.parametrize("room", [0, 7, 25, 30])
def test_lines_that_a_disk_refuses_are_kept_and_written_when_there_is_room_and_it_is_said_once_each(
    room, fault, tmp_path, monkeypatch, capsys
):
    path, disk = tmp_path / "metrics.jsonl", Disk(monkeypatch, fault)
    log = jsonl.start(path, 1)
    log(1, {"loss": 1.5})  # 25 bytes with its end
    assert path.stat().st_size == 25
    disk.room = room
    for step in range(2, 6):
        log(step, {"loss": 1.5})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"WARNING: {path} cannot be written ({os.strerror(fault)}): training goes on")
    disk.room = 10**9
    log(6, {"loss": 1.5})
    log(7, {"loss": 1.5})
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]
    assert capsys.readouterr().err.count("can be written again") == 1
    log.close()
    assert capsys.readouterr().err == ""


def test_lines_that_cannot_be_written_to_the_end_are_counted_and_no_half_line_stays_for_the_next_run(
    tmp_path, monkeypatch, capsys
):
    path, disk = tmp_path / "metrics.jsonl", Disk(monkeypatch)
    log = jsonl.start(path, 1)
    log(1, {"loss": 1.5})
    disk.room = 30  # the second line, and a part of the third
    for step in range(2, 5):
        log(step, {"loss": 1.5})
    capsys.readouterr()
    log.close()
    assert capsys.readouterr().err == f"WARNING: {path}: the last 2 lines are lost (No space left on device)\n"
    assert steps(path) == [1, 2]


def test_a_last_try_is_made_at_the_end(tmp_path, monkeypatch, capsys):
    path, disk = tmp_path / "metrics.jsonl", Disk(monkeypatch)
    log = jsonl.start(path, 1)
    disk.room = 5
    log(1, {})
    disk.room = 1000
    log.close()
    assert steps(path) == [1]
    assert "lost" not in capsys.readouterr().err


def test_a_folder_that_goes_away_and_comes_back(tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    log = jsonl.start(folder / "metrics.jsonl", 1)
    log(1, {})
    shutil.move(folder, tmp_path / "away")
    (tmp_path / "away" / "metrics.jsonl").unlink()  # open files of a folder that was only moved stay good
    log(2, {})
    log(3, {})
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 0}\n{"st')
    log(4, {})
    log.close()
    assert steps(folder / "metrics.jsonl") == [0, 2, 3, 4]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_really_full(small_disk, capsys):
    (small_disk / "other").write_bytes(b"x" * 40_000)
    log = jsonl.start(small_disk / "metrics.jsonl", 1)
    for step in range(1, 2001):
        log(step, {"loss": 1.5})
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    (small_disk / "other").unlink()
    log(2001, {"loss": 1.5})
    log.close()
    assert steps(small_disk / "metrics.jsonl") == list(range(1, 2002))


class Broken:
    """A logger that fails at its second call and at its end."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step, metrics) -> None:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("the server at https://me:word@host\nis gone")

    def close(self) -> None:
        raise OSError("gone for good")


def test_a_logger_that_fails_is_left_out_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    broken = Broken()
    monkeypatch.setattr(cli, "call", lambda node, **more: broken)
    with cli.logs({"output_dir": str(tmp_path), "logger": {"_target_": "x"}}, 0) as log:
        for step in range(1, 5):
            log(step, {"loss": 1.5})
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1
    assert "failed (RuntimeError: the server at https://***@host is gone) and is left out from here on" in said
    assert broken.calls == 2
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]


def test_a_logger_that_fails_at_its_end_does_not_hide_how_the_run_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "call", lambda node, **more: Broken())
    with contextlib.suppress(KeyError), cli.logs({"output_dir": str(tmp_path), "logger": {"_target_": "x"}}, 0):
        raise KeyError
    assert "gone for good" in capsys.readouterr().err


def test_a_logger_sees_no_secret(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "call", lambda node, **more: seen.append(more["config"]) or Broken())
    with cli.logs({"output_dir": str(tmp_path), "logger": {"_target_": "x", "api_key": "mine"}}, 0):
        pass
    assert seen[0]["logger"]["api_key"] == "***"
