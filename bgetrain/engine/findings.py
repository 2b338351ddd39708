"""What checks find, on one rank and on all together."""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
GB, MB = 10**9, 10**6
MOST_LINES = 4  # of one check, from a thousand ranks


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        name: of the check.
        level: ok | warning: the run may fail or be slow | error: it would fail, or not train what was asked for.
        line: one line; of a failure what, where and the mend.
    """

    name: str
    level: Level
    line: str


def merged(found: Sequence[Sequence[Finding]], hosts: Sequence[str]) -> list[Finding]:
    """One finding of each check from those of all ranks, which each have the same checks in the same order.

    Args:
        found: of each rank.
        hosts: of each rank.

    Returns:
        The worst of each check, with the lines of all ranks that have it and who they are; rank 0's line where all is well.
    """
    together = []
    for several in zip(*found, strict=True):
        worst = max((each.level for each in several), key=LEVELS.index)
        lines: dict[str, list[int]] = {}
        for rank, each in enumerate(several):
            if each.level == worst:
                lines.setdefault(each.line, []).append(rank)
        told = [f"{who(ranks, hosts)}{line}" for line, ranks in lines.items()][:MOST_LINES]
        more = [f"and {len(lines) - len(told)} more like it"] if len(lines) > len(told) else []
        together.append(Finding(several[0].name, worst, several[0].line if worst == "ok" else " | ".join(told + more)))
    return together


def who(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Ranks for people, as a line begins: `rank 3 (node7): `, `ranks 0-3, 6 (node1, node2): `; nothing where there is one."""
    if len(hosts) == 1:
        return ""
    runs = [[rank for _, rank in group] for _, group in groupby(enumerate(ranks), key=lambda each: each[1] - each[0])]
    numbers = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    places = list(dict.fromkeys(hosts[rank] for rank in ranks))
    named = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
    return f"rank{'s' * (len(ranks) > 1)} {numbers} ({named}): "


def size(count: float) -> str:
    """Bytes for people, in powers of ten: 74 GB, 1.2 GB, 12 MB, 0.3 MB."""
    value, unit = (count / GB, "GB") if count >= 0.95 * GB else (count / MB, "MB")
    return f"{value:,.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
