"""The training loop: interrupts, batches made ahead, and what it logs."""

import resource
import signal
import threading
import time
from typing import NamedTuple

import pytest
import torch

from bgetrain.engine import checkpoint, loop
from bgetrain.engine.ahead import ahead
from bgetrain.engine.best import Scoring
from bgetrain.types import Interrupted, LossOutput, TrainState, World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


class Batch(NamedTuple):
    step: int
    epoch: float


class Counter:
    """Counts updates in place of a model."""

    def __init__(self) -> None:
        self.updates, self.rates = 0, []

    def set_rate(self, factor):
        self.rates.append(factor)

    def rate(self):
        return 2.0 * self.rates[-1]

    def skipped_steps(self):
        return None

    def step(self):
        self.updates += 1
        return float(self.updates)

    def state(self, step):
        return TrainState(step, {"updates": torch.tensor([float(self.updates)])}, {"updates": {}}, {})


def fit(folder, engine, *, update=None, total_steps=10, first_step=1, log=None, log_every=4, save_every=100, **more):
    def plain(step, batch):
        assert batch.step == step
        return LossOutput(torch.tensor(float(step)), {"accuracy": torch.tensor(0.5)}), loop.Counts(2, 10, 20)

    return loop.fit(
        engine, lambda step: Batch(step, step / 10), update or plain, first_step=first_step, total_steps=total_steps,
        schedule=lambda step, total: step / total, log=log or (lambda step, metrics: None), log_every=log_every,
        save_every=save_every, output_dir=str(folder), num_workers=0, world=ALONE, **more,
    )  # fmt: skip


def test_figures_are_means_over_the_steps_since_the_last_line(tmp_path):
    lines = {}
    last = fit(tmp_path, Counter(), log=lambda step, metrics: lines.update({step: metrics}))
    assert list(lines) == [1, 4, 8, 10]
    assert [line["loss"] for line in lines.values()] == [1.0, 3.0, 6.5, 9.5]
    assert [line["grad_norm"] for line in lines.values()] == [1.0, 4.0, 8.0, 10.0]
    assert [line["lr"] for line in lines.values()] == pytest.approx([0.2, 0.8, 1.6, 2.0])
    assert all((line["padding_ratio"], line["accuracy"]) == (0.5, 0.5) for line in lines.values())
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert all(line["memory_gb"] == pytest.approx(own, rel=0.1) for line in lines.values())
    assert all(line["tokens_per_second"] == pytest.approx(5 * line["queries_per_second"]) for line in lines.values())
    assert [line["epoch"] for line in lines.values()] == [0.1, 0.4, 0.8, 1.0]
    assert last == lines[10]


def test_held_out_figures_come_every_score_every_steps_and_at_the_end_and_cost_no_throughput(tmp_path):
    lines, scored = {}, []

    def score():
        time.sleep(0.3)
        scored.append(1)
        return {"held_out_loss": float(len(scored))}

    fit(
        tmp_path,
        Counter(),
        log=lambda step, metrics: lines.update({step: metrics}),
        scoring=Scoring(score, 3, "held_out_loss", None),
    )
    assert {step: line["held_out_loss"] for step, line in lines.items() if "held_out_loss" in line} == {3: 1, 6: 2, 9: 3, 10: 4}
    assert list(lines) == [1, 3, 4, 6, 8, 9, 10]
    assert lines[4]["queries_per_second"] > 2 / 0.3  # one step of two queries: with the score in it, it would take longer


def test_shares_are_of_the_time_since_the_last_line(tmp_path):
    lines = {}

    def update(step, batch):
        time.sleep(0.05)
        return LossOutput(torch.tensor(1.0), {}), loop.Counts(1, 1, 1, {"masking": 0.02})

    fit(tmp_path, Counter(), update=update, log=lambda step, metrics: lines.update({step: metrics}))
    for line in (lines[4], lines[8]):  # the seconds of a line follow from its queries
        steps = 3 if line is lines[4] else 4
        assert line["masking_share"] == pytest.approx(0.02 * steps / (steps / line["queries_per_second"]))


def test_checkpoints_come_every_save_every_steps_and_at_the_end(tmp_path):
    fit(tmp_path, Counter(), save_every=4)
    assert checkpoint.steps(tmp_path / "checkpoints") == [8, 10]
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 10


def interrupting(step, batch):
    if step == 3:
        signal.raise_signal(signal.SIGINT)
    return LossOutput(torch.tensor(1.0), {}), loop.Counts(1, 1, 1)


def test_the_first_interrupt_finishes_the_step_and_saves_it(tmp_path):
    engine, lines = Counter(), []
    earlier = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="step 3 of 10 is saved"):
        fit(tmp_path, engine, update=interrupting, log=lambda step, metrics: lines.append(step))
    assert engine.updates == 3
    assert checkpoint.load_latest(tmp_path / "checkpoints").parameters["updates"].item() == 3.0
    assert lines[-1] == 3
    assert signal.getsignal(signal.SIGINT) is earlier


def test_an_interrupt_in_the_last_step_changes_nothing(tmp_path):
    engine = Counter()
    fit(tmp_path, engine, update=interrupting, total_steps=3)
    assert engine.updates == 3


def makers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "batches"]


def test_an_error_in_making_a_batch_reaches_the_loop_and_ends_the_thread(tmp_path):
    def batch_at(step):
        if step == 3:
            raise ValueError("rows.jsonl:3: empty query")
        return Batch(step, 0.0)

    with ahead(batch_at, range(1, 10), 0) as batches:
        assert [next(batches).step, next(batches).step] == [1, 2]
        with pytest.raises(ValueError, match=r"rows\.jsonl:3"):
            next(batches)
    assert not makers()


def test_batches_are_made_at_most_three_ahead_and_the_thread_ends_with_the_loop():
    made = []

    def batch_at(step):
        made.append(step)
        return Batch(step, 0.0)

    with ahead(batch_at, range(5, 101), 0) as batches:
        assert next(batches).step == 5
        time.sleep(0.3)
        assert makers()
        assert made == [5, 6, 7, 8]  # one taken, two waiting, one in hand
    assert not makers()


def test_a_loss_that_is_not_finite_is_not_applied(tmp_path):
    engine = Counter()

    def update(step, batch):
        return LossOutput(torch.tensor(float("inf") if step == 2 else 1.0), {}), loop.Counts(1, 1, 1)

    with pytest.raises(FloatingPointError, match="at step 2 on rank 0: inf"):
        fit(tmp_path, engine, update=update)
    assert engine.updates == 1
    assert not makers()
