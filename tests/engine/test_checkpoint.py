"""The files of a checkpoint: order of writing, pruning, and what a damaged folder answers."""

from pathlib import Path

import pytest
import torch

from bgetrain.engine import checkpoint
from bgetrain.types import TrainState


def state(step: int) -> TrainState:
    weights = {"a.weight": torch.full((2, 3), float(step)), "a.bias": torch.arange(3.0)}
    moments = {"a.weight": {"exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.full((2, 3), 2.0)}, "a.bias": {}}
    return TrainState(step, weights, moments, {"step": float(step)})


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path, state(3), keep=2)
    loaded = checkpoint.load_latest(tmp_path)
    assert (loaded.step, loaded.counters) == (3, {"step": 3.0})
    torch.testing.assert_close(loaded.parameters, state(3).parameters, rtol=0, atol=0)
    torch.testing.assert_close(loaded.moments, state(3).moments, rtol=0, atol=0)


def test_pruning_keeps_the_two_newest(tmp_path):
    for step in (5, 10, 15, 100):
        checkpoint.save(tmp_path, state(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_100", "step_15"]
    assert checkpoint.latest_step(tmp_path) == 100


def test_pruning_never_removes_what_latest_names_even_beside_later_leftovers(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, state(step), keep=3)
    (tmp_path / "latest").write_text("step_10")  # as someone does who goes back
    (tmp_path / ".step_25.part").mkdir()  # as a killed run leaves it
    checkpoint.save(tmp_path, state(11), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_10", "step_11"]
    assert checkpoint.load_latest(tmp_path).step == 11


def test_latest_moves_only_after_the_checkpoint_is_whole(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(1), keep=2)
    seen = []
    plain = Path.replace

    def replace(self, target):
        if Path(target).name == "latest":
            seen.append(sorted(path.name for path in (tmp_path / "step_2").iterdir()))
            assert checkpoint.latest_step(tmp_path) == 1
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    checkpoint.save(tmp_path, state(2), keep=1)
    assert seen == [["optimizer.safetensors", "parameters.safetensors", "state.json"]]
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_2"]


def test_a_checkpoint_cut_off_while_it_was_written_is_not_loaded(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(1), keep=2)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.json, "dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, state(2), keep=2)
    monkeypatch.undo()
    assert checkpoint.load_latest(tmp_path).step == 1
    checkpoint.save(tmp_path, state(2), keep=2)
    assert checkpoint.load_latest(tmp_path).step == 2


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_latest(tmp_path) is None
    assert checkpoint.latest_step(tmp_path / "missing") == 0


@pytest.mark.parametrize("name", ["step_7", "", "..", "nonsense"])
def test_a_pointer_to_nothing_is_one_line(tmp_path, name):
    (tmp_path / "latest").write_text(name)
    with pytest.raises(ValueError, match=r"latest: names .* not there.*resume=never") as caught:
        checkpoint.load_latest(tmp_path)
    assert "\n" not in str(caught.value)
