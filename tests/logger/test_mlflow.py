"""MLflow's own files, read back by MLflow itself, without a server."""

import sys

import pytest

from bgetrain.logger import mlflow as logger


@pytest.fixture
def opened(tmp_path):
    """Starts a logger in a folder, as often as asked for."""
    pytest.importorskip("mlflow")
    return lambda config: logger.start(str(tmp_path / "run"), config, None, "tries", None)


def test_figures_config_and_files_are_in_the_run(opened, tmp_path):
    log = opened({"seed": 42, "optim": {"lr": 1e-5, "betas": [0.9, 0.999]}, "data": {"files": ["x" * 7000]}, "none": None})
    log(1, {"loss": 1.5, "held_out/ndcg@10": 0.25})
    log(2, {"loss": 0.5})
    (tmp_path / "report.html").write_text("<p>all of it</p>", "utf8")
    log.artifact(str(tmp_path / "report.html"))
    log.close()
    client, run = log.client, log.client.get_run(log.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "tries"
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    params = {"seed": "42", "optim.lr": "1e-05", "optim.betas": "[0.9, 0.999]", "none": "None"}
    assert run.data.params == {**params, "data.files": ("['" + "x" * 7000)[:500]}
    assert [(each.step, each.value) for each in client.get_metric_history(log.run_id, "loss")] == [(1, 1.5), (2, 0.5)]
    assert run.data.metrics["held_out/ndcg_at_10"] == 0.25
    (kept,) = tmp_path.glob("run/mlflow/runs/*/*/artifacts/report.html")
    assert kept.read_text("utf8") == "<p>all of it</p>"


def test_a_config_of_more_keys_than_a_request_may_have_is_there_whole(opened):
    config = {f"key{number}": number for number in range(250)}
    log = opened(config)
    log.close()
    assert log.client.get_run(log.run_id).data.params == {key: str(value) for key, value in config.items()}


def test_a_start_in_the_same_folder_goes_on_with_its_run(opened):
    first = opened({"seed": 1})
    first(1, {"loss": 1.5})
    first.close()
    again = opened({"seed": 1, "log_every": 5})  # which a run may go on under
    assert again.run_id == first.run_id
    assert again.client.get_run(again.run_id).info.status == "RUNNING"
    again(2, {"loss": 0.5})
    again.close()
    assert [each.step for each in again.client.get_metric_history(again.run_id, "loss")] == [1, 2]


def test_a_store_that_mlflow_does_not_know_is_one_line(tmp_path):
    pytest.importorskip("mlflow")
    with pytest.raises(ValueError, match=r"^logger=mlflow: [^\n]*logger\.tracking_uri=null[^\n]*$"):
        logger.start(str(tmp_path), {}, "carrier-pigeon://loft", "tries", None)


def test_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match=r"^[^\n]*pip install bgetrain\[mlflow\]$"):
        logger.start(str(tmp_path), {}, None, "tries", None)
