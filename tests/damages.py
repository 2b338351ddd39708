"""Checkpoints damaged in every way that disks and people have; none may be loaded without a word."""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import kills
import torture
import victims

HALF, LAST, STEPS = 20, 30, 34  # steps of the two checkpoints, and the run's
WORDS = ("checkpoint", f"step_{LAST}", "latest")  # one of them stands in a line that tells of it
Damage = Callable[[Path, random.Random], None]


class Damaged(NamedTuple):
    """What came of it.

    Attributes:
        verdicts: (kind of damage, verdict): previous: the one before was taken, with a warning | refused: in one line |
            whole: the newest was taken and was whole.
        faults: what was not survived, in words.
    """

    verdicts: list[tuple[str, str]]
    faults: list[str]


def newest(folder: Path, draw: random.Random) -> Path:
    """A file of the newest checkpoint."""
    return draw.choice(sorted(path for path in (folder / f"step_{LAST}").rglob("*") if path.is_file()))


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def flip_one(folder: Path, draw: random.Random) -> None:
    flip(newest(folder, draw), draw)


def truncate(folder: Path, draw: random.Random) -> None:
    path = newest(folder, draw)
    os.truncate(path, draw.randrange(path.stat().st_size))


def empty(folder: Path, draw: random.Random) -> None:
    os.truncate(newest(folder, draw), 0)


def remove(folder: Path, draw: random.Random) -> None:
    newest(folder, draw).unlink()


def zeros(folder: Path, draw: random.Random) -> None:
    """Of the length that it had, and not written to its end: what a power cut leaves."""
    path = newest(folder, draw)
    content = path.read_bytes()
    start = draw.randrange(len(content) - 1)
    path.write_bytes(content[:start] + bytes(len(content) - start))


def append(folder: Path, draw: random.Random) -> None:
    with newest(folder, draw).open("ab") as file:
        file.write(draw.randbytes(100))


def swap(folder: Path, draw: random.Random) -> None:
    """A file of each checkpoint takes the other's place."""
    ours = newest(folder, draw)
    theirs = folder / f"step_{HALF}" / ours.name
    content = ours.read_bytes(), theirs.read_bytes()
    ours.write_bytes(content[1])
    theirs.write_bytes(content[0])


def older(folder: Path, draw: random.Random) -> None:
    path = newest(folder, draw)
    shutil.copy(folder / f"step_{HALF}" / path.name, path)


def two_parts(folder: Path, draw: random.Random) -> None:
    """Two files of one checkpoint take each other's place."""
    first, second = draw.sample(sorted((folder / f"step_{LAST}").glob("*.safetensors")), 2)
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])


def dangling(folder: Path, draw: random.Random) -> None:
    path = newest(folder, draw)
    path.unlink()
    path.symlink_to(folder / "nothing")


def no_folder(folder: Path, draw: random.Random) -> None:
    shutil.rmtree(folder / f"step_{LAST}")
    (folder / f"step_{LAST}").write_bytes(b"")


def empty_folder(folder: Path, draw: random.Random) -> None:
    for path in (folder / f"step_{LAST}").iterdir():
        path.unlink()


def both(folder: Path, draw: random.Random) -> None:
    for step in (HALF, LAST):
        flip(draw.choice(sorted((folder / f"step_{step}").glob("*.safetensors"))), draw)


def edited(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """`state.json` after somebody's hand, or another program."""

    def edit(folder: Path, draw: random.Random) -> None:
        path = folder / f"step_{LAST}" / "state.json"
        facts = json.loads(path.read_text("utf8"))
        path.write_text(json.dumps(change(facts) or facts), "utf8")

    return edit


def pointer(content: bytes | None) -> Damage:
    def point(folder: Path, draw: random.Random) -> None:
        (folder / "latest").unlink()
        if content is not None:
            (folder / "latest").write_bytes(content)

    return point


def half_written(folder: Path, draw: random.Random) -> None:
    """A save that was killed; nobody's loss."""
    shutil.copytree(folder / f"step_{LAST}", folder / f".step_{STEPS}.part")
    parts = sorted(path for path in (folder / f".step_{STEPS}.part").iterdir())
    os.truncate(draw.choice(parts), 7)


def stranger(folder: Path, draw: random.Random) -> None:
    """A later checkpoint that nobody points at, and not whole."""
    (folder / "step_33").mkdir()
    (folder / "step_33" / "state.json").write_text("{}")


IN_THE_NEWEST: dict[str, Damage] = {
    "a bit flipped": flip_one,
    "cut short": truncate,
    "empty": empty,
    "missing": remove,
    "zeros to its end": zeros,
    "bytes appended": append,
    "files of two steps swapped": swap,
    "a file of the step before": older,
    "parts swapped": two_parts,
    "a link to nothing": dangling,
    "a file in place of the folder": no_folder,
    "an empty folder": empty_folder,
    "both checkpoints flipped": both,
    "state.json: another step": edited(lambda facts: facts.update(step=facts["step"] + 1)),
    "state.json: a key less": edited(lambda facts: facts.pop(sorted(facts)[0]) and None),
    "state.json: no object": edited(lambda facts: [facts]),
    "state.json: empty object": edited(lambda facts: {"step": LAST}),
    "a pointer to nothing": pointer(b"step_999"),
    "a pointer to elsewhere": pointer(b"../../../../etc"),
    "a pointer of garbage": pointer(b"\xff\x00\xfe step \n\n"),
    "an empty pointer": pointer(b""),
}
AROUND_IT: dict[str, Damage] = {  # the newest stays whole, and may be taken without a word
    "no pointer": pointer(None),
    "half written": half_written,
    "a stranger": stranger,
}
POINTERS = ("a pointer to nothing", "a pointer to elsewhere", "a pointer of garbage", "an empty pointer")
OFTEN = ("a bit flipped", "cut short", "a bit flipped", "zeros to its end")  # of these there are many places


def kinds(count: int) -> list[str]:
    """Each kind once, and those that have many places again and again."""
    every = [*IN_THE_NEWEST, *AROUND_IT]
    return [*every, *(OFTEN[number % len(OFTEN)] for number in range(count))][:count]


def damaged(model: Path, data: Path, folder: Path, *, count: int, seed: int, chosen: list[str] | None = None) -> Damaged:
    """Damages the checkpoints of one run in `count` ways, each in a copy of its own, and goes on from there."""
    draw, size = random.Random(seed), 2
    torture.untouched(torture.overrides(model, data, folder / "whole", STEPS, size), folder / "ranks-whole", size)
    half = torture.composed(torture.overrides(model, data, folder / "half", STEPS, size))
    ranks = victims.start(size, half, folder / "ranks-half", stop_after=LAST)
    assert ranks.statuses() == [75] * size, ranks.said()
    verdicts, faults = [], []
    for number, kind in enumerate(chosen or kinds(count)):
        copy = shutil.copytree(folder / "half", folder / f"copy-{number}")
        {**IN_THE_NEWEST, **AROUND_IT}[kind](copy / "checkpoints", draw)
        cfg = torture.composed(torture.overrides(model, data, copy, STEPS, size))
        found = verdict(kind, victims.start(size, cfg, folder / f"ranks-{number}"), copy, folder / "whole")
        (verdicts if found in ("previous", "refused", "whole") else faults).append((kind, found))
        shutil.rmtree(copy)
    return Damaged(verdicts, [f"{kind}: {found}" for kind, found in faults])


def verdict(kind: str, ranks: victims.Ranks, ours: Path, whole: Path) -> str:
    """What became of a run that went on from damaged checkpoints."""
    statuses, said = ranks.statuses(), ranks.said()
    lines = [line for line in said.splitlines() if "bgetrain:" in line]
    if 2 in statuses:
        one_line = "Traceback" not in said and len(set(lines)) == 1
        return "refused" if one_line else f"refused in more than one line: {said[-1500:]}"
    if statuses != [0] * len(statuses):
        return f"statuses {statuses}: {said[-1500:]}"
    first = min(victims.rows_of(ranks))
    told = any(any(word in line for word in WORDS) for line in said.splitlines())
    found = kills.differences(ours, whole)
    if found:
        return f"went on at step {first}, {'with' if told else 'without'} a word: {'; '.join(found)}"
    if first == LAST + 1 and kind in AROUND_IT:
        return "whole"
    if first == LAST + 1 and kind in POINTERS and told:
        return "whole"
    if first == HALF + 1 and told:
        return "previous"
    return f"went on at step {first}, {'with' if told else 'without'} a word, to the right end"


def told(found: Damaged) -> str:
    count = Counter(verdict for _, verdict in found.verdicts)
    tried = len(found.verdicts) + len(found.faults)
    ways = ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items()))
    return "\n  ".join([f"damaged checkpoints: {tried} tried, {len(found.verdicts)} survived ({ways})", *found.faults])
