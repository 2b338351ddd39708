"""A stand-in for SLURM's controller: programs that note what they are asked and answer from files."""

from pathlib import Path

SBATCH = """#!/bin/sh
# refuses the job whose number stands in the file `refused`
number=$(($(cat {folder}/count) + 1))
if [ "$number" = "$(cat {folder}/refused)" ]; then echo "sbatch: error: Batch job submission failed: Invalid qos" >&2; exit 1; fi
echo "$number" >{folder}/count
echo "$@" >>{folder}/submitted
echo "$number|PENDING|0|UNLIMITED|Priority" >>{folder}/rows
echo "$number"
"""
SQUEUE = """#!/bin/sh
cat {folder}/rows
"""


OTHER = """#!/bin/sh
echo "$(basename "$0") $@" >>{folder}/others
"""


class Queue:
    """What was submitted, and what `squeue` shows.

    Args:
        folder: for the programs and their files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scontrol", OTHER), ("scancel", OTHER)):
            (folder / name).write_text(text.format(folder=folder))
            (folder / name).chmod(0o755)
        for name, text in (("count", "100"), ("refused", "0"), ("submitted", ""), ("rows", ""), ("others", "")):
            (folder / name).write_text(text)

    @property
    def submitted(self) -> list[str]:
        """The arguments of each call that was taken, but --parsable."""
        return [line.replace("--parsable ", "") for line in (self.folder / "submitted").read_text().splitlines()]

    @property
    def others(self) -> list[str]:
        """The calls of scontrol and scancel, as they were typed."""
        return (self.folder / "others").read_text().splitlines()

    def refuse(self, number: int) -> None:
        """Has the job of this number refused; 0: none."""
        (self.folder / "refused").write_text(str(number))

    def show(self, *rows: str) -> None:
        """Sets what `squeue` shows: ID|STATE|RESTARTS|TIME LEFT|REASON."""
        (self.folder / "rows").write_text("".join(f"{row}\n" for row in rows))
