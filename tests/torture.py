"""Kills, changes of world and damaged checkpoints over one run, held against the run that nobody touched.

`python tests/torture.py --kills 100 --steps 300 --changes 20 --damages 50`; `tests/test_torture.py` is its short form.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SAVE_EVERY, LOG_EVERY = 10, 3  # no multiples of each other: a logging window does not end where a checkpoint is made
NEVER = 10**6


def overrides(model: Path, data: Path, output: Path, steps: int, size: int, *more: str, zero: int = 1) -> list[str]:
    """A small `stage=finetune`, as one would type it; of `more` the keys win."""
    typed = [
        "stage=finetune", f"model.path={model}", "data=beir", f"data.path={data}", "global_batch=7", "group_size=2",
        "chunk_tokens=120", "step_mode=cached", "precision=fp32", f"engine=zero{zero}", "model.dropout=0.1",
        "loss.temperature=0.1", "data.query_max_len=24", "data.passage_max_len=24", "optim.lr=1e-3", f"total_steps={steps}",
        f"log_every={LOG_EVERY}", f"save_every={SAVE_EVERY}", f"num_processes={size}", f"output_dir={output}",
    ]  # fmt: skip
    keys = [each.partition("=")[0] for each in more]
    return [*(each for each in typed if each.partition("=")[0] not in keys), *more]


def composed(typed: list[str]) -> dict[str, Any]:
    """What the command line makes of it."""
    from omegaconf import OmegaConf

    from bgetrain import config

    cfg: Any = OmegaConf.to_container(config.compose(typed), resolve=True)
    return cfg


def untouched(typed: list[str], folder: Path, size: int) -> tuple[dict[int, list[Any]], list[float]]:
    """Does a run as it should be; the rows of each step, and when each began."""
    import victims

    ranks = victims.start(size, composed(typed), folder)
    statuses = ranks.statuses()
    assert statuses == [0] * size, f"{statuses}\n{ranks.said()}"
    return victims.rows_of(ranks), victims.times_of(ranks)


def kill(model: Path, data: Path, folder: Path, *, kills: int, commands: int, steps: int, seed: int, size: int = 2) -> Any:
    """Kills a run `kills` times; the tally.

    Raises:
        AssertionError: it does not end as the run that nobody touched.
    """
    import kills as killing

    scored = ["evaluate.every=7", "evaluate.held_out=4"]  # a best checkpoint beside the newest, and scores between the saves
    whole, ours = (overrides(model, data, folder / name, steps, size, *scored) for name in ("whole", "ours"))
    rows, _ = untouched(whole, folder / "ranks-whole", size)
    tally = killing.Tally()
    plan = killing.planned(kills, steps, SAVE_EVERY, size, random.Random(seed), commands)
    killing.killed(composed(ours), ours, plan, folder / "ranks-ours", size, tally)
    found = killing.differences(folder / "ours", folder / "whole")
    if not commands:  # whose rows nobody sees
        found += [] if tally.history == rows else ["other rows were seen"]
    assert not found, "; ".join(found)
    return tally


def cost(model: Path, data: Path, folder: Path, *, steps: int, turns: int, size: int = 2) -> dict[str, float]:
    """Seconds of a run that saves every 10 steps over those of one that does not, by `save_async`; medians, in turns."""
    forms = {"none": f"save_every={NEVER}", "async": "save_async=true", "sync": "save_async=false"}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(turns):
        for form, typed in forms.items():
            name = f"{form}-{turn}"
            _, at = untouched(
                overrides(model, data, folder / name, steps, size, typed, f"log_every={steps}"), folder / f"ranks-{name}", size
            )
            seconds[form].append(at[-1] - at[0])
    least = statistics.median(seconds["none"])
    return {form: statistics.median(each) / least for form, each in seconds.items()} | {"step_ms": 1000 * least / (steps - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--commands", type=int, default=4, help="kills of these that go through the real command line")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--damages", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3, help="of the measurement of what saving costs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        report(given, Path(name))


def report(given: argparse.Namespace, folder: Path) -> None:
    """Does what was asked for and prints the figures."""
    from conftest import write_beir, write_model

    (folder / "model").mkdir()
    (folder / "beir").mkdir()
    model, data = write_model(folder / "model"), write_beir(folder / "beir")
    began = time.monotonic()

    def said(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)

    if given.kills:
        tally = kill(model, data, folder / "kill", kills=given.kills, commands=given.commands, steps=given.steps, seed=given.seed)
        said(f"kills: {tally.tried} tried ({tally.kinds}), {tally.survived} survived, the end equal bit for bit")
        said(f"kills that left a half-written checkpoint: {tally.in_saves}")
        said(f"ranks that did not come down by themselves: {tally.ended}")
        said(f"steps lost per kill: mean {statistics.mean(tally.lost):.1f}, max {max(tally.lost)} (saved every {SAVE_EVERY})")
        said(f"seconds to be training again: median {statistics.median(tally.seconds):.1f}, max {max(tally.seconds):.1f}")
        if tally.launched:
            said(f"the same through the command line, to its next save: median {statistics.median(tally.launched):.1f}")
    if given.changes:
        import changes

        said(changes.told(changes.changed(model, data, folder / "change", count=given.changes, seed=given.seed)))
    if given.damages:
        import damages

        said(damages.told(damages.damaged(model, data, folder / "damage", count=given.damages, seed=given.seed)))
    if given.turns:
        ratios = cost(model, data, folder / "cost", steps=given.steps, turns=given.turns)
        said(
            f"time with a save every {SAVE_EVERY} steps over that without: {ratios['async']:.2f} with save_async=true, "
            f"{ratios['sync']:.2f} with false, at {ratios['step_ms']:.0f} ms a step"
        )


if __name__ == "__main__":
    os.environ["WANDB_MODE"] = "disabled"
    main()
