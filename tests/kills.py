"""One run that is killed again and again, held against the run that nobody touched."""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import victims

NOT_THE_RUN_S = re.compile(
    r"^save_|_per_second$|_seconds$|^seconds_|_gb$|_share$|_bytes$"
)  # figures of the machine, not of the run
START_SECONDS = 120.0  # that a run may take until its first step
LAUNCHED_SECONDS = 180.0  # the same through the command line, imports and all
KINDS = {"step": 0.5, "save": 0.4, "start": 0.1}  # how the kills are shared out


class Kill(NamedTuple):
    """One kill.

    Attributes:
        kind: step: at any instant of a step | save: while a checkpoint is written | start: before the first step |
            command: of the real command line.
        step: the step at which, or after whose save; of kind start, nothing.
        victims: ranks; of kind command -1 is the launcher.
        wait: 0 to 1, where within the step, the save or the start.
    """

    kind: str
    step: int
    victims: list[int]
    wait: float


class Tally:
    """What the kills did."""

    def __init__(self) -> None:
        self.tried = self.survived = self.in_saves = self.ended = 0
        self.lost: list[int] = []  # steps that were done and had to be done again
        self.seconds: list[float] = []  # from a restart to its first step, imports done
        self.launched: list[float] = []  # the same of the command line, imports and all
        self.kinds: dict[str, int] = {}
        self.history: dict[int, list[Any]] = {}  # step -> its rows, of the start that did it last


def planned(count: int, steps: int, save_every: int, ranks: int, draw: random.Random, commands: int) -> list[Kill]:
    """Kills over the whole run, in the order of their steps."""
    kinds = draw.choices(list(KINDS), list(KINDS.values()), k=count - commands) + ["command"] * commands
    draw.shuffle(kinds)
    made = []
    for kind, step in zip(kinds, sorted(draw.randint(1, steps - 1) for _ in kinds), strict=True):
        whom = [*([rank] for rank in range(ranks)), list(range(ranks))]
        chosen = draw.choice([[-1], [0], [1]] if kind == "command" else whom)
        made.append(Kill(kind, -(-step // save_every) * save_every if kind == "save" else step, chosen, draw.random()))
    return made


def killed(cfg: dict[str, Any], overrides: list[str], kills: list[Kill], folder: Path, size: int, tally: Tally) -> None:
    """Does a run under kills, to its end.

    Args:
        cfg: of the run.
        overrides: the same as typed, for the kills of the command line.
        kills: in their order.
        folder: new; receives what the ranks of each start leave.
        size: ranks.
        tally: is added to.

    Raises:
        AssertionError: a start that ended by itself, or did not come to its first step.
    """
    done = 0  # the last step that the start before last began
    left, number = list(kills), 0
    while True:
        number += 1
        aim = left[0] if left else None
        if aim and aim.kind == "command":
            tally.launched.append(kill_command(cfg, overrides, aim))
            count(tally, aim, Path(cfg["output_dir"]))
            left.pop(0)
            continue
        ranks = victims.start(size, cfg, folder / f"start_{number}")
        if aim and aim.kind == "start":
            time.sleep(aim.wait * 1.5 * (tally.seconds[-1] if tally.seconds else 1.0))
        else:
            first = first_step(ranks)
            tally.seconds.append(time.monotonic() - ranks.began)
            tally.survived = tally.tried
            tally.lost += [max(0, done - first)] if done else []
        if not aim:
            break
        if aim.kind != "start" and not reach(ranks, aim, Path(cfg["output_dir"]), cfg["save_every"]):
            break  # its end came first
        tally.ended += victims.kill(ranks, aim.victims)
        count(tally, aim, Path(cfg["output_dir"]))
        begun = victims.rows_of(ranks)
        tally.history |= begun
        done = max(begun, default=done)
        left.pop(0)
    statuses = ranks.statuses()
    assert statuses == [0] * size, f"{statuses} after kill {tally.tried}\n{ranks.said()}"
    tally.history |= victims.rows_of(ranks)
    tally.survived = tally.tried


def first_step(ranks: victims.Ranks) -> int:
    """Waits for the first step of a start; its number."""
    deadline = time.monotonic() + START_SECONDS
    while not ranks.step():
        if not ranks.running() or time.monotonic() > deadline:
            for process in ranks.processes:
                process.kill()
            raise AssertionError(f"{ranks.folder.name} never trained: {ranks.statuses()}\n{ranks.said()}")
        time.sleep(victims.PACE)
    return min(victims.rows_of(ranks))


def reach(ranks: victims.Ranks, aim: Kill, output_dir: Path, save_every: int) -> bool:
    """Waits for the instant of a kill; False where the run was done before."""
    began, first = time.monotonic(), ranks.step()
    step = aim.step
    if aim.kind == "save":
        step = max(step, -(-first // save_every) * save_every)
    while ranks.step() < step:
        if not ranks.running():
            return False
        time.sleep(victims.PACE)
    took = (time.monotonic() - began) / max(1, step - first) if step > first else 0.05
    if aim.kind == "step":
        time.sleep(aim.wait * took)
        return True
    while not writing(output_dir) and ranks.step() <= step + 2 and ranks.running():
        pass  # a save takes some milliseconds: no pause here
    time.sleep(aim.wait * 0.01)
    return ranks.running()


def writing(output_dir: Path) -> bool:
    """Whether a checkpoint is half written, or whole and not yet the one that is pointed at."""
    folder = output_dir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    if any(name.startswith(".step_") for name in names):
        return True
    try:
        pointed = int((folder / "latest").read_text("utf8").strip()[5:])
    except (OSError, ValueError):
        pointed = 0
    return any(name.startswith("step_") and int(name[5:]) > pointed for name in names)


def count(tally: Tally, aim: Kill, output_dir: Path) -> None:
    tally.tried += 1
    tally.in_saves += writing(output_dir)
    tally.kinds[aim.kind] = tally.kinds.get(aim.kind, 0) + 1


def kill_command(cfg: dict[str, Any], overrides: list[str], aim: Kill) -> float:
    """Starts the command line, kills its launcher or a rank when it has saved again; seconds from its start to that save."""
    began = time.monotonic()
    command = [sys.executable, "-m", "bgetrain", *overrides]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    pointer = Path(cfg["output_dir"]) / "checkpoints" / "latest"
    before = pointer.stat().st_mtime_ns if pointer.exists() else 0
    while (pointer.stat().st_mtime_ns if pointer.exists() else 0) == before:
        if launcher.poll() is not None or time.monotonic() - began > LAUNCHED_SECONDS:
            launcher.kill()
            raise AssertionError(f"the command line never trained: {launcher.communicate()[0].decode('utf8', 'replace')}")
        time.sleep(victims.PACE)
    seconds = time.monotonic() - began
    ranks = [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
    ranks = [pid for pid in ranks if b"bgetrain" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(launcher.pid if aim.victims == [-1] else ranks[aim.victims[0]], 9)
    deadline = time.monotonic() + victims.DOWN_SECONDS
    status = launcher.wait(victims.DOWN_SECONDS)
    while any(alive(pid) for pid in ranks):
        assert time.monotonic() < deadline, f"ranks outlive their launcher by {victims.DOWN_SECONDS} s"
        time.sleep(0.01)
    assert status == (-9 if aim.victims == [-1] else 1), status
    return seconds


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def figures(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without what tells of the machine."""
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text("utf8").splitlines()]
    return [{key: value for key, value in line.items() if not NOT_THE_RUN_S.search(key)} for line in lines]


def weights(output_dir: Path) -> bytes:
    return (output_dir / "model" / "model.safetensors").read_bytes()


def differences(ours: Path, whole: Path) -> list[str]:
    """In what the end of a run differs from that of another, in words; nothing where they are equal bit for bit."""
    found = [] if weights(ours) == weights(whole) else ["the final weights differ"]
    lines = figures(ours), figures(whole)
    if lines[0] != lines[1]:
        first = next((pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]), ("fewer or more lines", ""))
        found.append(f"metrics.jsonl differs: {first[0]} | {first[1]}")
    return found
