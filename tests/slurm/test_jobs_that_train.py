"""Training by the real command line: to its end, and through an interruption and the loss of a node."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bgetrain import overrides

STEPS = 60
PATIENCE = 300  # seconds, for a machine that others use as well


def words(model: Path, data: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "bgetrain", "stage=finetune", "data=beir", f"data.path={data}", f"model.path={model}",
        f"total_steps={STEPS}", "save_every=10", "log_every=1", "global_batch=7", "group_size=1", "chunk_tokens=60",
        "model.dropout=0", "loss.temperature=0.1", "precision=fp32", "optim.lr=0.0003", "data.query_max_len=24",
        "data.passage_max_len=24", "preflight=false", *more,
    ]  # fmt: skip


def slurm(output_dir: Path, *more: str) -> list[str]:
    shape = ["cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=0", "cluster.tasks_per_node=2"]
    return [*shape, overrides.quoted("output_dir", str(output_dir)), *more]


def curve(output_dir: Path) -> list[dict]:
    """What must be equal from run to run of each line."""
    lines = map(json.loads, (output_dir / "metrics.jsonl").read_text("utf8").splitlines())
    return [{key: line[key] for key in ("step", "loss", "grad_norm", "lr", "epoch")} for line in lines]


def reaches(cluster, id: str, output_dir: Path, step: int) -> None:
    """Waits until a step is logged, with steps to go."""
    deadline = time.monotonic() + PATIENCE
    while not (output_dir / "metrics.jsonl").exists() or len(curve(output_dir)) < step:
        assert time.monotonic() < deadline, cluster.output(id)
        time.sleep(0.05)
    assert not (output_dir / "result.json").exists(), "it was too fast to be interrupted: raise STEPS"


@pytest.fixture
def submit(cluster, tmp_path, model_folder, beir_folder):
    """submit(output_dir, *overrides) -> id of the job, and what was said"""

    def call(output_dir: Path, *more: str) -> tuple[str, str]:
        said = cluster.run(*words(model_folder, beir_folder, *slurm(output_dir, *more)), cwd=tmp_path).stdout
        return re.search(r"as job (\d+)", said)[1], said

    return call


def test_a_job_trains_as_one_process_does_and_goes_on_exactly_after_an_interruption_and_the_loss_of_a_node(
    cluster, submit, tmp_path, model_folder, beir_folder
):
    whole, broken = tmp_path / "whole", tmp_path / "broken 断"
    id, said = submit(whole)
    assert f"tail -F {whole}/slurm-{id}.out" in said
    assert f"scancel {id}" in said
    again = cluster.run(*words(model_folder, beir_folder, *slurm(whole)), cwd=tmp_path)
    assert f"job {id} of this folder is" in again.stdout
    cluster.wait(id, {"COMPLETED"}, PATIENCE)
    assert [line["step"] for line in curve(whole)] == list(range(1, STEPS + 1))

    id, _ = submit(broken, "resume=never")
    reaches(cluster, id, broken, 5)
    cluster.signal(id, "USR1")
    cluster.wait(id, {"PENDING", "COMPLETING"}, PATIENCE)
    before = len(curve(broken))
    cluster.wait(id, {"RUNNING"}, PATIENCE)
    reaches(cluster, id, broken, before + 12)
    cluster.kill_node(2)
    cluster.wait(id, {"PENDING"}, 60)
    cluster.start_node(2)
    job = cluster.wait(id, {"COMPLETED"}, PATIENCE)
    assert job["Restarts"] == "2"
    assert "interrupted: back into the queue" in cluster.output(id)
    assert curve(broken) == curve(whole)
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in (broken, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    alone = [*words(model_folder, beir_folder), f"output_dir={tmp_path / 'alone'}", "num_processes=1"]
    cluster.run(*alone, cwd=tmp_path, seconds=PATIENCE)
    for one, many in zip(curve(tmp_path / "alone"), curve(whole), strict=True):
        assert one["loss"] == pytest.approx(many["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(many["grad_norm"], rel=1e-4)
