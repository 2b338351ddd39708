"""One rank dies, freezes, hangs or raises; the others leave by themselves and say which and where.

All runs go on at once, for they mostly wait. Limits of time are loose: without the watch they would hang for ever, or for the
five minutes of the backend's own time-out.
"""

import os
import signal
import socket
import time

import pytest
from faults import Run, signal_later

from bgetrain import distributed, progress

HOST = socket.gethostname()


def collective(world) -> None:
    distributed.max_over_ranks(world.rank, world)


def struck(world, rank: int, number: int) -> None:
    """One rank is sent a signal between two collectives."""
    collective(world)
    if world.rank == rank:
        os.kill(os.getpid(), number)
    collective(world)


def first_dies(cfg, world, log):
    struck(world, 0, signal.SIGKILL)


def second_dies(cfg, world, log):
    struck(world, 1, signal.SIGKILL)


def first_freezes(cfg, world, log):
    struck(world, 0, signal.SIGSTOP)


def second_freezes(cfg, world, log):
    struck(world, 1, signal.SIGSTOP)


def second_sleeps(cfg, world, log):
    with progress.watched():
        collective(world)
        if world.rank == 1:
            time.sleep(1000)  # the line that the stacks must name
        collective(world)


def second_sleeps_unwatched(cfg, world, log):
    collective(world)
    if world.rank == 1:
        time.sleep(1000)  # the line that the stacks must name
    collective(world)


def first_reads_for_long(cfg, world, log):
    distributed.after_first(world, lambda: time.sleep(9.0) if world.rank == 0 else None)
    collective(world)
    time.sleep(5.0 if world.rank == 1 else 0.0)  # a long step of one rank, not watched
    collective(world)
    return {}


def second_raises(cfg, world, log):
    collective(world)
    if world.rank == 1:
        raise RuntimeError("the second rank's own message")
    collective(world)


def second_is_interrupted_while_it_waits(cfg, world, log):
    if world.rank == 1:
        signal_later(signal.SIGUSR1, 1.0)
    distributed.after_first(world, lambda: time.sleep(1000))


SHORT, LONG = {"heartbeat_seconds": 3.0, "timeout_minutes": 5}, {"heartbeat_seconds": 20.0, "timeout_minutes": 0.1}
RUNS = {
    first_dies: (2, SHORT),
    second_dies: (3, SHORT),
    first_freezes: (2, SHORT),
    second_freezes: (4, SHORT),
    second_sleeps: (3, LONG),
    second_sleeps_unwatched: (2, LONG),
    first_reads_for_long: (2, SHORT),
    second_raises: (2, SHORT),
    second_is_interrupted_while_it_waits: (2, SHORT),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    started = {function: Run(function, size, folder / function.__name__, **limits) for function, (size, limits) in RUNS.items()}
    yield started
    for run in started.values():
        run.wait(seconds=0.0)


GOES_ON = ": the same command goes on from what was saved"


def said(outcome, rank: int) -> str:
    """The one line that a rank has said."""
    lines = [line.removeprefix(f"[rank {rank}] ") for line in outcome.said[rank]]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_rank_that_dies_is_named_with_its_host_by_the_others_which_leave(runs):
    found = runs[second_dies].wait()
    assert found.statuses == [1, -signal.SIGKILL, 1]
    for rank in (0, 2):
        expected = f"bgetrain: rank 1 ({HOST}, pid {found.pids[1]}): contact is lost, dead or frozen{GOES_ON}"
        silent = expected.replace("contact is lost", "silent for over 3 s")  # where gloo had not told at once
        assert said(found, rank) in (expected, silent)


def test_the_death_of_the_first_rank_is_told_though_the_meeting_place_dies_with_it(runs):
    found = runs[first_dies].wait()
    assert found.statuses == [-signal.SIGKILL, 1]
    keeper = f"rank 0 ({HOST}, pid {found.pids[0]}), which keeps the ranks' meeting place,"
    silent = f"{keeper[:-1]}: contact is lost, dead or frozen"  # where the store's own error comes late
    assert said(found, 1) in (f"bgetrain: {keeper} is gone{GOES_ON}", f"bgetrain: {silent}{GOES_ON}")


def test_a_frozen_rank_is_given_up_while_the_others_wait_in_a_collective(runs):
    found = runs[second_freezes].wait(frozen=(1,))
    assert found.statuses == [1, None, 1, 1]
    for rank in (0, 2, 3):
        line = said(found, rank)
        assert line.startswith(f"bgetrain: rank 1 ({HOST}, pid {found.pids[1]}): ")
        assert line.endswith(f", dead or frozen{GOES_ON}")
    assert any("silent for over 3 s" in said(found, rank) for rank in (0, 2, 3))


def test_a_frozen_first_rank_is_given_up_though_calls_of_the_meeting_place_hang(runs):
    found = runs[first_freezes].wait(frozen=(0,))
    assert found.statuses == [None, 1]
    keeper = f"rank 0 ({HOST}, pid {found.pids[0]}), which keeps the ranks' meeting place,"
    assert said(found, 1) == f"bgetrain: {keeper[:-1]}: silent for over 3 s, dead or frozen{GOES_ON}"


@pytest.mark.parametrize("function", [second_sleeps, second_sleeps_unwatched], ids=lambda each: each.__name__)
def test_a_stuck_collective_leaves_the_stacks_of_every_rank(runs, function):
    found = runs[function].wait()
    size = len(found.statuses)
    assert found.statuses == [1] * size
    folder = runs[function].folder / "out" / "stacks"
    assert sorted(path.name for path in folder.iterdir()) == [f"rank_{rank}.txt" for rank in range(size)]
    texts = [(folder / f"rank_{rank}.txt").read_text() for rank in range(size)]
    line = function.__code__.co_firstlineno + (4 if function is second_sleeps else 3)
    assert f'test_pulse.py", line {line} in {function.__name__}' in texts[1]
    for rank in range(size):
        assert texts[rank].startswith(f"rank {rank} ({HOST}, pid {found.pids[rank]}): ")
        assert ("waiting in max_of_each for " in texts[rank]) == (rank != 1 and function is second_sleeps)
        assert f"in {function.__name__}" in texts[rank] or function is not second_sleeps
    words = [line for lines in found.said for line in lines]
    line = next(line for line in words if "no progress" in line)
    assert f"rank 1 at test_pulse.py:{function.__code__.co_firstlineno + (4 if function is second_sleeps else 3)}" in line
    assert line.endswith(f"Stacks of every rank are in {folder}{GOES_ON}")
    if function is second_sleeps:
        assert "no progress for 0.1 min: ranks 0, 2 waiting in max_of_each; rank 1 at" in line
    assert not any("Traceback" in line for line in words)


def test_a_rank_that_takes_long_is_not_accused(runs):
    found = runs[first_reads_for_long].wait()
    assert found.statuses == [0, 0]
    assert found.said == [[], []]
    assert found.seconds > 13.0  # four times what silence may last


def test_a_rank_that_raises_says_why_itself_and_the_other_points_to_it(runs):
    found = runs[second_raises].wait()
    assert found.statuses == [1, 1]
    assert found.said[1][-1] == "RuntimeError: the second rank's own message"
    why = f"rank 1 ({HOST}, pid {found.pids[1]}) has ended with an error of its own, which it says{GOES_ON}"
    assert said(found, 0) == f"bgetrain: {why}"


def test_sigusr1_to_one_rank_before_the_loop_ends_all_with_75_though_it_waits_in_cpp(runs):
    found = runs[second_is_interrupted_while_it_waits].wait()
    assert found.statuses == [75, 75]
    assert said(found, 1).startswith("interrupted: ")
    assert found.said[0] == []
