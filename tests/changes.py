"""One run that goes on under other numbers of ranks and other ZeRO stages, held against the run that did neither."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import kills
import torture
import victims

SIZES, STAGES = (1, 2, 4), (0, 1, 2, 3)
STEPS = 10  # between two changes
TOLERANCE = 1e-5  # of a loss, relative: sums over ranks and chunks are taken in another order
INTERRUPTED = 75
# a small step, so that rounding does not grow from one change to the next
MORE = ["model.dropout=0", "optim=sgd", "optim.lr=1e-3", "optim.momentum=0.9", "log_every=1", "save_every=1000"]


class Changed(NamedTuple):
    """What came of it.

    Attributes:
        places: (ranks, ZeRO stage) of each start.
        worst: the largest relative difference of a loss.
        steps: compared.
    """

    places: list[tuple[int, int]]
    worst: float
    steps: int


def drawn(count: int, draw: random.Random) -> list[tuple[int, int]]:
    """`count` changes: no start is under the same ranks and stage as the one before, and all come where there is room."""
    every = [(size, stage) for size in SIZES for stage in STAGES]
    places = [(2, 1)]
    while len(places) <= count:
        draw.shuffle(every)
        places += [place for place in every if place != places[-1]]
    return places[: count + 1]


def changed(model: Path, data: Path, folder: Path, *, count: int, seed: int) -> Changed:
    """Does a run in `count + 1` starts, each under another world size or stage.

    Raises:
        AssertionError: a loss is off, a start failed, or a row was seen twice or not at all.
    """
    places = drawn(count, random.Random(seed))
    steps = STEPS * len(places)
    rows, _ = torture.untouched(torture.overrides(model, data, folder / "whole", steps, 2, *MORE), folder / "ranks-whole", 2)
    seen: dict[int, list[Any]] = {}
    for number, (size, stage) in enumerate(places, 1):
        # without the threshold a tiny model is not cut into parts
        more = [*MORE, *(["+engine.zero_optimization.stage3_param_persistence_threshold=0"] if stage == 3 else [])]
        typed = torture.overrides(model, data, folder / "ours", steps, size, *more, zero=stage)
        last = STEPS * number if number < len(places) else None
        ranks = victims.start(size, torture.composed(typed), folder / f"ranks-{number}", stop_after=last)
        statuses = ranks.statuses()
        assert statuses == [INTERRUPTED if last else 0] * size, f"{places[:number]}: {statuses}\n{ranks.said()}"
        now = victims.rows_of(ranks)
        expected = range(STEPS * (number - 1) + 1, STEPS * number + 1)
        assert list(now) == list(expected), f"{places[:number]}: did steps {list(now)} in place of {expected}"
        seen |= now
    assert seen == rows, "other rows were seen"
    ours, whole = kills.figures(folder / "ours"), kills.figures(folder / "whole")
    assert [line["step"] for line in ours] == [line["step"] for line in whole] == list(range(1, steps + 1))
    apart = [abs(one["loss"] - other["loss"]) / abs(other["loss"]) for one, other in zip(ours, whole, strict=True)]
    worst = apart.index(max(apart))
    assert apart[worst] < TOLERANCE, f"loss of step {worst + 1} is off by {apart[worst]:.1e}; {places}"
    return Changed(places, apart[worst], steps)


def told(found: Changed) -> str:
    starts = " ".join(f"{size}x{stage}" for size, stage in found.places)
    return (
        f"changes: {len(found.places) - 1} of ranks x ZeRO stage ({starts}); losses of {found.steps} steps within "
        f"{found.worst:.1e} of the untouched run's, the same rows in each step"
    )
