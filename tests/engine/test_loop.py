"""The training loop: interrupts, batches made ahead, and what it logs."""

import contextlib
import resource
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from bgetrain.engine import checkpoint, loop
from bgetrain.engine.ahead import ahead
from bgetrain.engine.best import Best, Scoring
from bgetrain.engine.course import Course
from bgetrain.engine.guard import Guard
from bgetrain.engine.saver import Saver
from bgetrain.engine.window import Counts
from bgetrain.types import Interrupted, LossOutput, TrainState, World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


class Batch(NamedTuple):
    step: int
    epoch: float


class Counter:
    """Counts updates in place of a model."""

    def __init__(self) -> None:
        self.updates, self.rates, self.norm = 0, [], None

    def set_rate(self, factor):
        self.rates.append(factor)

    def rate(self):
        return 2.0 * self.rates[-1]

    def skipped_steps(self):
        return None

    def step(self):
        if self.norm is not None:
            return self.norm
        self.updates += 1
        return float(self.updates)

    def state(self, step):
        return TrainState(step, {"updates": torch.tensor([float(self.updates)])}, {}, None, {})


def saver_of(folder, *, first_step=1, keep=2, overlap=False, warn=print):
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Saver(folder / "checkpoints", ALONE, keep=keep, overlap=overlap, facts={}, warn=warn, first_step=first_step)


def fit(folder, engine, *, update=None, total_steps=10, first_step=1, log=None, log_every=4, save_every=100, most=0,
        warn=print, describe=None, scoring=None, saver=None):  # fmt: skip
    def plain(step, batch):
        assert batch.step == step
        return LossOutput(torch.tensor(float(step)), {"accuracy": torch.tensor(0.5)}), Counts(2, 10, 20)

    saver = saver or saver_of(folder, first_step=first_step, warn=warn)
    progress = checkpoint.progress(folder / "checkpoints", first_step - 1)
    known = progress[0]["guard"] if progress else {}
    course = Course(
        engine, saver=saver, guard=Guard(most, folder / "nonfinite", describe, ALONE, warn, known), scoring=scoring,
        log=log or (lambda step, metrics: None), log_every=log_every, save_every=save_every, total_steps=total_steps,
        world=ALONE, progress=progress,
    )  # fmt: skip
    return loop.fit(
        lambda step: Batch(step, step / 10), update or plain, first_step=first_step,
        schedule=lambda step, total: step / total, num_workers=0, course=course, world=ALONE,
    )  # fmt: skip


def latest(folder: Path) -> int:
    return checkpoint.newest_whole(folder / "checkpoints", print)


def saved_updates(folder: Path) -> float:
    return checkpoint.load(folder / "checkpoints", latest(folder), 0, 1).tensors["updates"].item()


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
    assert {name: last[name] for name in lines[10]} == lines[10]
    assert (last["steps"], last["save_count"]) == (10.0, 1.0)


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
        return LossOutput(torch.tensor(1.0), {}), Counts(1, 1, 1, {"masking": 0.02})

    fit(tmp_path, Counter(), update=update, log=lambda step, metrics: lines.update({step: metrics}))
    for line in (lines[4], lines[8]):  # the seconds of a line follow from its queries
        steps = 3 if line is lines[4] else 4
        assert line["masking_share"] == pytest.approx(0.02 * steps / (steps / line["queries_per_second"]))


def test_checkpoints_come_every_save_every_steps_and_at_the_end(tmp_path):
    fit(tmp_path, Counter(), save_every=4)
    assert checkpoint.steps(tmp_path / "checkpoints") == [8, 10]
    assert latest(tmp_path) == 10


def interrupting(step, batch):
    if step == 3:
        signal.raise_signal(signal.SIGINT)
    return LossOutput(torch.tensor(1.0), {}), Counts(1, 1, 1)


def test_the_first_interrupt_finishes_the_step_and_saves_it(tmp_path):
    engine, lines = Counter(), []
    earlier = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="step 3 of 10 is saved"):
        fit(tmp_path, engine, update=interrupting, log=lambda step, metrics: lines.append(step))
    assert engine.updates == 3
    assert saved_updates(tmp_path) == 3.0
    assert lines == [1]  # an interruption adds no line
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


def not_finite_at(*steps: int):
    def update(step, batch):
        return LossOutput(torch.tensor(float("inf") if step in steps else 1.0), {}), Counts(2, 1, 1)

    return update


def test_a_loss_that_is_not_finite_is_not_applied(tmp_path):
    engine = Counter()
    with pytest.raises(FloatingPointError, match="at step 2 on rank 0: inf"):
        fit(tmp_path, engine, update=not_finite_at(2))
    assert engine.updates == 1
    assert not makers()


def test_a_gradient_that_is_not_finite_ends_the_run_and_leaves_the_rows_of_its_batch(tmp_path):
    engine = Counter()

    def update(step, batch):
        engine.norm = float("inf") if step == 3 else None
        return LossOutput(torch.tensor(1.0), {}), Counts(2, 1, 1)

    with pytest.raises(FloatingPointError) as caught:
        fit(tmp_path, engine, update=update, describe=lambda batch, places: [{"row": 10 * batch.step + each} for each in places])
    path = tmp_path / "nonfinite" / "step_3.rank_0.jsonl"
    assert str(caught.value) == f"gradient is not finite at step 3, in a batch of 2 rows, written to {path}"
    assert path.read_text() == '{"row": 30}\n{"row": 31}\n'
    assert engine.updates == 2


def test_updates_that_are_not_finite_are_left_out_as_many_in_a_row_as_allowed_and_counted(tmp_path):
    said, lines = [], {}
    last = fit(
        tmp_path, Counter(), update=not_finite_at(2, 3, 5), most=2, warn=said.append, log_every=1,
        log=lambda step, metrics: lines.update({step: metrics}),
    )  # fmt: skip
    assert [line["nonfinite_steps"] for line in lines.values()] == [0, 1, 2, 2, 3, 3, 3, 3, 3, 3]
    assert said[1] == "loss is not finite at step 3 on rank 0: inf; its update is left out, 2 of 2 in a row"
    assert "loss" not in lines[2]  # there was none to average
    assert last["loss"] == 1.0
    with pytest.raises(FloatingPointError, match=r"at step 4 .*skip\(2\) leaves out no more than that in a row"):
        fit(tmp_path, Counter(), update=not_finite_at(2, 3, 4), most=2)


def test_a_leap_of_the_loss_is_told_once_and_a_fall_is_not(tmp_path):
    said = []

    def update(step, batch):
        loss = 10.0 if step == 30 else 5.0 / step**0.5 + 0.01 * (step % 3)
        return LossOutput(torch.tensor(loss), {}), Counts(1, 1, 1)

    fit(tmp_path, Counter(), update=update, total_steps=60, log_every=1, warn=said.append)
    assert len(said) == 1
    assert said[0].startswith("loss 10.0000 at step 30 has leapt: the median of the 29 lines before is 1.")


def stopped_at(stop: int, plain):
    """As `plain`, with a SIGINT inside a step."""

    def update(step, batch):
        if step == stop:
            signal.raise_signal(signal.SIGINT)
        return plain(step, batch)

    return update


DETERMINED = ("loss", "accuracy", "grad_norm", "lr", "epoch", "held_out_loss", "nonfinite_steps", "progress_ratio")


@pytest.mark.parametrize("stop", [1, 2, 5, 6, 7, 9, 10])
def test_lines_of_an_interrupted_run_are_those_of_one_that_never_stopped(stop, tmp_path):
    """Stops lie on and beside the ends of windows and scores; thirds are no binary fractions: a sum in another order shows."""

    def plain(step, batch):
        loss = float("nan") if step == 3 else step / 3
        return LossOutput(torch.tensor(loss, dtype=torch.float64), {"accuracy": torch.tensor(step / 7)}), Counts(2, 10, 20)

    def run(folder, update, first_step):
        engine, lines, scored = Counter(), {}, []
        engine.updates = first_step - 1
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

        def score():
            scored.append(engine.updates)
            return {"held_out_loss": 1 / engine.updates}

        with contextlib.suppress(Interrupted):
            fit(
                folder, engine, update=update, log=lambda step, metrics: lines.update({step: metrics}), total_steps=11, most=1,
                log_every=3, first_step=first_step, scoring=Scoring(score, 5, "held_out_loss", None), warn=lambda _: None,
            )  # fmt: skip
        return {step: {name: line.get(name) for name in DETERMINED} for step, line in lines.items()}, scored

    whole, _ = run(tmp_path / "once", plain, 1)
    first, before = run(tmp_path / "twice", stopped_at(stop, plain), 1)
    assert stop not in before  # who asks to stop waits for no score
    second, _ = run(tmp_path / "twice", plain, stop + 1)
    assert list(whole) == [1, 3, 5, 6, 9, 10, 11]
    assert not set(first) & set(second)
    assert {**first, **second} == whole


def test_the_best_step_stays_and_training_ends_when_patience_has_run_out(tmp_path):
    figures = iter([3.0, 1.0, 2.0, float("nan"), 1.0, 0.5])
    scoring = Scoring(lambda: {"held_out_loss": next(figures)}, 2, "held_out_loss", 3)
    lines = {}
    last = fit(tmp_path, Counter(), total_steps=100, scoring=scoring, log=lambda step, metrics: lines.update({step: metrics}))
    assert (last["steps"], last["best_step"]) == (10.0, 4.0)
    assert checkpoint.weights(tmp_path / "checkpoints", 4)["updates"].item() == 4.0
    assert checkpoint.steps(tmp_path / "checkpoints") == [4, 10]
    engine = Counter()
    again = fit(tmp_path, engine, total_steps=100, scoring=scoring, first_step=11)  # killed before its model was written
    assert engine.updates == 0
    assert all(again[name] == value for name, value in last.items() if not name.startswith("save_"))


def test_a_run_that_is_killed_while_it_scores_has_saved_the_step_and_scores_again(tmp_path):
    killed = [True]

    def score():
        assert latest(tmp_path) == 4
        if killed[0]:
            raise KeyboardInterrupt
        return {"held_out_loss": 1.0}

    scoring, lines = Scoring(score, 4, "held_out_loss", None), []
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Counter(), total_steps=6, save_every=4, scoring=scoring, log=lambda step, metrics: lines.append(step))
    killed[0] = False
    assert lines == [1]
    scoring = scoring._replace(score=lambda: {"held_out_loss": 1.0})
    last = fit(
        tmp_path,
        Counter(),
        total_steps=6,
        save_every=4,
        scoring=scoring,
        first_step=5,
        log=lambda step, metrics: lines.append(step),
    )
    assert lines == [1, 4, 6]
    assert last["best_step"] == 4.0
    assert checkpoint.named(tmp_path / "checkpoints", "best") == 4


def test_a_best_step_that_could_not_be_saved_is_told_and_not_claimed(tmp_path, monkeypatch):
    from bgetrain.engine import commit

    plain, said = commit.write_part, []

    def write(folder, step, *arguments):
        if step == 4:
            raise OSError(28, "No space left on device")
        return plain(folder, step, *arguments)

    monkeypatch.setattr(commit, "write_part", write)
    figures = iter([2.0, 1.0, 3.0])
    scoring = Scoring(lambda: {"held_out_loss": next(figures)}, 2, "held_out_loss", None)
    last = fit(tmp_path, Counter(), total_steps=6, scoring=scoring, warn=said.append)
    assert last["best_step"] == 2.0
    assert said[-1] == (
        "the checkpoint of step 4, the best by held_out_loss, could not be saved; that of step 2 is the best that there is"
    )


def test_more_is_better_but_for_losses():
    figures = [0.3, 0.5, 0.4]
    for metric, expected in (("ndcg@10", 2), ("held_out_loss", 1), ("held_out_loss/a", 1), ("held_out_accuracy/lossless", 2)):
        best = Best(Scoring(dict, 1, metric, None), {})
        for step, value in enumerate(figures, 1):
            best.add(step, {metric: value})
        assert best.step == expected
