"""Saving beside training on two ranks: overlap, failures of a rank's disk, and what is left at the end."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Batch(NamedTuple):
    step: int
    epoch: float


class Counter:
    """Counts updates in place of a model; each rank holds a tensor of its own."""

    def __init__(self, rank: int) -> None:
        self.updates, self.rank = 0, rank

    def set_rate(self, factor):
        pass

    def rate(self):
        return 0.5

    def skipped_steps(self):
        return None

    def step(self):
        self.updates += 1
        return 1.0

    def state(self, step):
        import torch

        from bgetrain.types import TrainState

        return TrainState(step, {f"tensor{self.rank}": torch.full((4,), float(self.updates))}, {}, None, {})


def run(world, folder: Path, *, overlap: bool, total: int, every: int, stop: int | None = None) -> dict[str, Any]:
    """Trains; what was logged, warned, raised, and left."""
    import signal

    import torch

    from bgetrain import distributed
    from bgetrain.engine import checkpoint, loop
    from bgetrain.engine.course import Course
    from bgetrain.engine.guard import Guard
    from bgetrain.engine.saver import Saver
    from bgetrain.engine.window import Counts
    from bgetrain.types import Interrupted, LossOutput

    folder.mkdir(parents=True, exist_ok=True)
    distributed.barrier(world)
    warned, lines, newest = [], {}, {}

    def update(step, batch):
        if step == stop and world.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        newest[step] = checkpoint.named(folder, "latest")
        time.sleep(0.02)
        return LossOutput(torch.tensor(1.0), {}), Counts(1, 1, 1)

    saver = Saver(folder, world, keep=2, overlap=overlap, facts={}, warn=warned.append, first_step=1)
    raised, last = "", {}
    try:
        engine = Counter(world.rank)
        course = Course(
            engine, saver=saver, guard=Guard(0, folder, None, world, warned.append, {}), scoring=None, log_every=1,
            log=lambda step, metrics: lines.update({step: metrics}), save_every=every, total_steps=total, world=world,
            progress=[],
        )  # fmt: skip
        last = loop.fit(
            lambda step: Batch(step, 0.0), update, first_step=1, schedule=lambda *_: 1.0,
            num_workers=0, course=course, world=world,
        )  # fmt: skip
    except (Interrupted, ValueError) as error:
        raised = f"{type(error).__name__}: {error}"
    distributed.barrier(world)
    steps, left = checkpoint.steps(folder), sorted(path.name for path in folder.iterdir() if path.name[0] == ".")
    return {"warned": warned, "lines": lines, "newest": newest, "raised": raised, "last": last, "steps": steps, "left": left}


def failing(rank: int, steps: set[int], seconds: float = 0.0):
    """`write_part` with a disk that is full for one rank at some steps, and slow."""
    import errno

    from bgetrain.engine import commit

    plain = commit.write_part

    def write(folder, step, own, size, tensors):
        time.sleep(seconds)
        if own == rank and step in steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(folder, step, own, size, tensors)

    return plain, write


def cases(world, folder: Path) -> dict[str, Any]:
    from bgetrain.engine import commit

    found = {}
    for name, (failure, keys) in {
        "overlapping": ((None, set(), 0.3), {"overlap": True, "total": 30, "every": 10}),
        "waiting": ((None, set(), 0.3), {"overlap": False, "total": 12, "every": 4}),
        "second": ((None, set(), 0.5), {"overlap": True, "total": 6, "every": 2}),
        "one full disk": ((1, {4, 6}, 0.0), {"overlap": True, "total": 10, "every": 2}),
        "none saved": ((1, {2, 4, 5}, 0.0), {"overlap": True, "total": 10, "every": 2, "stop": 5}),
        "stop unsaved": ((1, {5}, 0.0), {"overlap": True, "total": 10, "every": 2, "stop": 5}),
        "stop": ((None, set(), 0.0), {"overlap": True, "total": 10, "every": 2, "stop": 5}),
    }.items():
        plain, commit.write_part = failing(*failure)
        try:
            found[name] = run(world, folder / name, **keys)
        finally:
            commit.write_part = plain
    plain_commit = commit.commit

    def read_only(*arguments, **more):
        if arguments[1]["step"] == 4:
            raise OSError(30, "Read-only file system")
        plain_commit(*arguments, **more)

    commit.commit = read_only
    found["commit"] = run(world, folder / "commit", overlap=True, total=6, every=2)
    commit.commit = plain_commit
    return found


@pytest.fixture(scope="module")
def found(spawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saver")
    return folder, spawn(2, cases, folder)


def test_training_goes_on_while_a_checkpoint_is_written(found):
    newest = found[1][0]["overlapping"]["newest"]
    assert newest[11] == 0  # 20 ms after the save of step 10 began, which takes 300
    assert newest[21] == 10  # a second save waits for it at the latest
    for own in (each["overlapping"]["lines"] for each in found[1]):
        figures = [line for line in own.values() if "save_gb" in line]
        assert figures
        assert all(line["save_seconds"] >= 0.3 > line["save_stall_seconds"] > 0 for line in figures[:1])
        assert figures[0]["save_gb"] == pytest.approx(2 * 100e-9, abs=100e-9)  # two tensors of 16 bytes, headers
    for last in (each["overlapping"]["last"] for each in found[1]):  # the last save comes after the last line
        assert last["save_count"] == 3
        assert last["save_seconds"] >= 3 * 0.3


def test_without_overlap_training_waits(found):
    run = found[1][0]["waiting"]
    assert run["newest"][5] == 4
    assert run["lines"][5]["save_stall_seconds"] >= 0.3


def test_a_second_save_waits_for_the_first(found):
    run = found[1][0]["second"]
    assert run["newest"][5] == 2  # the save of step 4 waited until that of step 2 was whole
    assert run["steps"] == [4, 6]


def test_both_ranks_parts_are_in_a_checkpoint(found):
    from bgetrain.engine import checkpoint

    for rank in (0, 1):
        loaded = checkpoint.load(found[0] / "overlapping", 30, rank, 2)
        assert {name: each.tolist() for name, each in loaded.tensors.items()} == {"tensor0": [30.0] * 4, "tensor1": [30.0] * 4}


def test_a_full_disk_of_one_rank_is_told_by_it_and_training_goes_on(found):
    first, second = (each["one full disk"] for each in found[1])
    folder = found[0] / "one full disk"
    words = "the checkpoint of step {} could not be saved in " + f"{folder} (No space left on device); "
    assert second["warned"] == [words.format(4) + "that of step 2 stays", words.format(6) + "that of step 2 stays"]
    assert first["warned"] == []
    assert first["steps"] == [8, 10]
    assert first["left"] == []
    assert first["last"]["failed_saves"] == 2.0
    assert first["raised"] == ""


def test_what_rank_0_cannot_make_whole_is_given_up_by_all(found):
    first, second = (each["commit"] for each in found[1])
    assert first["warned"] == [
        f"the checkpoint of step 4 could not be saved in {found[0] / 'commit'} (Read-only file system); that of step 2 stays"
    ]
    assert second["warned"] == []
    assert first["steps"] == [2, 6]


def test_a_stop_says_what_is_saved_and_is_an_error_where_nothing_is(found):
    for each in found[1]:
        folder = found[0] / "stop"
        assert each["stop"]["raised"] == f"Interrupted: interrupted, step 5 of 10 is saved in {folder}"
        assert each["stop unsaved"]["raised"] == (
            "Interrupted: interrupted, step 5 of 10 could not be saved (No space left on device); that of step 4 stays in "
            f"{found[0] / 'stop unsaved'}"
        )
        assert each["none saved"]["raised"] == (
            f"ValueError: stopped at step 5, nothing could be saved in {found[0] / 'none saved'} (No space left on device): "
            "make room there"
        )
