"""metrics.jsonl after a clean start, a resumed one and a killed one."""

import json
import math

import numpy as np
import pytest

from bgetrain.logger import jsonl


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def test_each_call_is_one_line_that_is_there_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = jsonl.start(path, 1)
    log(1, {"loss": 1.5, "queries": 64})
    assert path.read_text("utf8") == '{"step": 1, "loss": 1.5, "queries": 64}\n'
    log(2, {"loss": np.float32(0.25)})
    assert rows(path)[1] == {"step": 2, "loss": 0.25}
    log.close()


def test_figures_that_are_not_finite_are_null(tmp_path):
    log = jsonl.start(tmp_path / "metrics.jsonl", 1)
    log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan"), "e": 0.0})
    log.close()
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None, "c": None, "d": None, "e": 0.0}]


def test_steps_after_the_checkpoint_are_dropped_and_the_rest_is_untouched(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 3,  "loss": 1.0}\n{"step": 4, "loss": 0.9}\n{"step": 4, "ndcg@10": 0.5}\n'
    path.write_text(kept + '{"step": 5, "loss": 0.8}\n{"step": 6, "loss": 0.7}\n', "utf8")
    log = jsonl.start(path, 5)
    assert path.read_text("utf8") == kept
    log(5, {"loss": 0.75})
    log.close()
    assert path.read_text("utf8") == kept + '{"step": 5, "loss": 0.75}\n'
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", ['{"step": 2, "lo', "{", '{"step": 2, "text": "\u4e2d'])
def test_half_written_last_line_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + cut.encode()[: len(cut.encode()) - 1 or 1])
    jsonl.start(path, 10).close()
    assert path.read_text("utf8") == '{"step": 1}\n'


def test_whole_last_line_without_its_end_is_kept_and_ended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}', "utf8")
    log = jsonl.start(path, 3)
    log(3, {})
    log.close()
    assert [row["step"] for row in rows(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', '{"step": "one"}'])
def test_broken_whole_line_is_named_and_the_file_is_left_as_it_was(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 9}}\n', "utf8")
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: .*must be a JSON object"):
        jsonl.start(path, 2)
    assert path.read_text("utf8") == f'{{"step": 1}}\n{line}\n{{"step": 9}}\n'
    assert len(list(tmp_path.iterdir())) == 1


def test_file_is_whole_at_every_moment(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n', "utf8")

    def killed(*_):
        raise OSError("killed")

    monkeypatch.setattr(type(path), "replace", killed)
    with pytest.raises(OSError, match="killed"):
        jsonl.start(path, 2)
    assert path.read_text("utf8") == '{"step": 1}\n{"step": 2}\n'


def test_a_run_that_goes_back_further_than_the_pointer_said_leaves_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (10, 20, 30)))
    log = jsonl.start(path, 31)  # before it is seen that the checkpoints of steps 30 and 20 are damaged
    for step in (20, 30, 40):
        log(step, {"loss": 2.0})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0)]
