"""Work divided among processes: results in order, faults told in one line, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from divided import divided

from bgetrain.data.workers import in_parallel


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_order_and_progress_adds_up(num_workers):
    told: list[int] = []
    found = in_parallel(divided, "job", num_workers, told.append)
    assert found == [(part, num_workers) for part in range(num_workers)]
    assert sum(told) == 700 * num_workers


FAULTS = [
    ("refused", ValueError, "data.files=/no/such/file: no such file or folder"),
    ("crashed", RuntimeError, "KeyError: 'fox'"),
    ("foreign", RuntimeError, "invalid literal for int"),  # a ValueError of another package is no mistake of the user's
    ("ended", RuntimeError, "a worker ended with status 9"),
]


@pytest.mark.parametrize(("job", "sort", "words"), FAULTS)
def test_a_fault_in_one_worker_ends_all(job, sort, words):
    with pytest.raises(sort, match=words):
        in_parallel(divided, job, 2, lambda n: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_first_process(number, tmp_path):
    code = "from divided import divided; from bgetrain.data.workers import in_parallel; "
    code += f"in_parallel(divided, {str(tmp_path)!r}, 2, print)"
    paths = [str(Path(__file__).parent.parent), *sys.path]
    first = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        deadline = time.monotonic() + 20
        while first.poll() is None:  # Python loses an interrupt that meets it in a finalizer: a person presses the keys again
            if number == signal.SIGINT and time.monotonic() < deadline:  # and closes the window in the end
                os.killpg(first.pid, number)  # as a terminal does
            else:
                first.kill()
            time.sleep(1)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        wait_until(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers))
    finally:
        first.kill()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
