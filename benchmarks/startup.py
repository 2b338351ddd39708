"""What the pages and mistakes of the command line cost, beside `import torch`, which they do without.

python benchmarks/startup.py
"""

import resource
import subprocess
import sys
import tempfile

LINES = [
    ["--help"],
    ["stage=finetune", "--help"],
    ["stage=finetune", "--cfg", "job"],
    ["stage=finetune", "optim.lrr=1e-5"],
    ["recipe=quickstart", "dry_run=true"],
]


def cpu_seconds(*command: str) -> float:
    """User and system time of a command, in an empty folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    torch = cpu_seconds("-c", "import torch")
    print(f"{torch:5.2f} CPU s  1.00 x  import torch")
    for line in LINES:
        seconds = cpu_seconds("-m", "bgetrain", *line)
        print(f"{seconds:5.2f} CPU s  {seconds / torch:.2f} x  bgetrain {' '.join(line)}")


if __name__ == "__main__":
    main()
