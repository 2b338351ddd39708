"""What a machine and its control groups leave, and memory given back."""

import subprocess
import sys
from pathlib import Path

import torch

from bgetrain.engine import machine
from bgetrain.types import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def host(root: Path, available: int, groups: dict[str, str]) -> int:
    """`machine.host_bytes` of a made-up machine; available in kB, files of control groups under sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:    {available} kB\n")
    (root / "proc/self/cgroup").write_text("4:memory:/a/b\n3:cpu:/a/b\n0::/a/b\n")
    for name, text in groups.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return machine.host_bytes(root)


def test_free_memory_is_that_of_the_machine_or_of_the_tightest_control_group(tmp_path):
    two = {"a/memory.max": "9000000\n", "a/memory.current": "3000000\n", "a/memory.stat": "anon 5\ninactive_file 500000\n"}
    unlimited = {"a/b/memory.max": "max\n", "a/b/memory.current": "1\n", "a/b/memory.stat": "inactive_file 0\n"}
    one = {
        "memory/memory.limit_in_bytes": "4000000\n",
        "memory/memory.usage_in_bytes": "1000000\n",
        "memory/memory.stat": "total_inactive_file 7\n",
    }
    assert host(tmp_path / "free", 5000, {}) == 5_120_000
    assert host(tmp_path / "two", 50000, two | unlimited) == 6_500_000
    assert host(tmp_path / "one", 50000, two | one) == 3_000_007
    assert machine.host_bytes(tmp_path / "none") == 0
    assert machine.free_bytes(ALONE._replace(local_size=4)) <= machine.free_bytes(ALONE)


def test_freed_memory_is_given_back():
    """In a process of its own, whose heap nothing else has stretched."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_machine; test_machine.allocate()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after, peak, told = map(int, done.stdout.split())
    assert after - before < 130e6  # of 200 MB every second block is still held
    assert peak == told >= before + 195e6


def allocate() -> None:
    before = status("VmRSS")
    held = [torch.ones(25_000) for _ in range(2000)]  # blocks that glibc keeps in its heap
    kept = held[::2]
    del held
    machine.trim()
    print(before, status("VmRSS"), status("VmHWM"), machine.peak_bytes(ALONE))
    assert len(kept) == 1000


def status(key: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line) * 1024


def test_a_stopwatch_adds_up_what_is_done_inside_and_nothing_else(monkeypatch):
    clock = iter([1.0, 1.5, 10.0, 12.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    watch = machine.Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch:
            pass
    assert watch.seconds() == 2.5
