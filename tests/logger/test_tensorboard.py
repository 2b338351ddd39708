"""Event files, read back by TensorBoard itself."""

import sys

import pytest

from bgetrain.logger import tensorboard


def test_figures_and_config_are_in_the_event_files(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = tensorboard.start(str(tmp_path), {"seed": 42, "loss": {"temperature": 0.02}})
    log(1, {"loss": 1.5, "evaluate/ndcg@10": 0.25})
    log(2, {"loss": 0.5})
    log.close()
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(each.step, each.value) for each in read.Scalars("loss")] == [(1, 1.5), (2, 0.5)]
    assert [(each.step, each.value) for each in read.Scalars("evaluate/ndcg@10")] == [(1, 0.25)]
    text = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '    "seed": 42' in text
    assert '"temperature": 0.02' in text


def test_the_place_of_a_file_is_a_text(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = tensorboard.start(str(tmp_path), {})
    log.artifact(str(tmp_path / "report.html"))
    log.close()
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    text = read.Tensors("report/text_summary")[0].tensor_proto.string_val[0].decode()
    assert str(tmp_path / "report.html") in text


def test_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match=r"^[^\n]*pip install bgetrain\[tensorboard\]$"):
        tensorboard.start(str(tmp_path), {})
