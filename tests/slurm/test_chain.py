"""Recipes as jobs, and sweeps as job arrays, on the cluster."""

import json
import re
import sys
from pathlib import Path

import yaml

from bgetrain import recipe_file

BGETRAIN = [sys.executable, "-m", "bgetrain"]
SLURM = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.max_restarts=1", "cluster.save_before_seconds=5"]

# what stands for `python -m bgetrain` where the claim is about jobs: it checks the command, and takes no seconds to train
QUICK = f"""#!{sys.executable}
import pathlib, sys
from omegaconf import OmegaConf
from bgetrain import config, output
cfg = OmegaConf.to_container(config.compose(sys.argv[3:]), resolve=True)
output.claim(cfg)
if (pathlib.Path(__file__).parent / ("fails-" + pathlib.Path(cfg["output_dir"]).name)).exists():
    print("bgetrain: data.path=nowhere: no such folder")
    sys.exit(2)
output.finish(cfg["output_dir"], cfg["stage"]["name"], {{}})
"""
SMALL = """
tokenizer: [stage=tokenizer, data=text, "data.files=[x]"]
evaluate-random: [stage=evaluate, data=beir, data.path=x, "model.path=${tokenizer}/model"]
pairs: [stage=pairs, "data=jsonl", "data.files=[x]", "model.path=${tokenizer}/model"]
evaluate-pairs: [stage=evaluate, data=beir, data.path=x, "model.path=${pairs}/model"]
evaluate-again: [stage=evaluate, data=beir, data.path=x, "model.path=${evaluate-pairs}/model"]
"""


def submitted(said: str) -> dict[str, str]:
    """Step -> the number of the job that a command says it has submitted."""
    return dict(re.findall(r"^\[\d+/\d+\] (\S+): job (\d+)(?: after|,)", said, re.M))


def status(cluster, folder: Path) -> dict[str, dict]:
    said = cluster.run(*BGETRAIN, "stage=status", f"output_dir={folder}", "format=json")
    return {row["run"]: row for row in json.loads(said.stdout)}


def quick(folder: Path) -> list[str]:
    (folder / "quick").write_text(QUICK)
    (folder / "quick").chmod(0o755)
    return [*SLURM, f"cluster.python={folder}/quick"]


def test_the_quickstart_recipe_as_a_chain_ends_in_its_ladder(cluster, tmp_path):
    """Each step has its own size, one of them two nodes; the smallest sizes that train."""
    steps = recipe_file.load("quickstart")
    steps["pairs"].append("cluster.nodes=2")
    steps["finetune"].append("cluster.tasks_per_node=2")
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(steps, sort_keys=False))
    packages = "[asyncio,email,http,importlib,json,logging,multiprocessing,numpy,yaml,rich,xml]"
    small = [f"data.packages={packages}", "data.max_files=400", "data.max_rows=600", f"data.cache={tmp_path}/docs"]
    small += ["model.hidden_size=32", "model.num_heads=2", "model.vocab_size=2000"]
    small += ["total_steps=3", "global_batch=16", "mine.first=1", "mine.last=20", "preflight=false"]
    folder = tmp_path / "out"
    command = [*BGETRAIN, f"recipe={tmp_path}/quickstart.yaml", f"output_dir={folder}", *SLURM, *small]
    said = cluster.run(*command, cwd=tmp_path).stdout
    jobs = submitted(said)
    assert list(jobs) == list(steps)
    assert f"pairs: job {jobs['pairs']} after {jobs['retromae']}, 2 nodes of 1 rank" in said
    assert status(cluster, folder)["mine"]["state"] in ("waiting", "queued", "running")
    for job in jobs.values():
        cluster.wait(job, seconds=300)
    ladder = json.loads((folder / "result.json").read_text())["ladder"]
    assert [rung["step"] for rung in ladder] == ["random", "pairs", "finetune"]
    assert {row["state"] for row in status(cluster, folder).values()} == {"done"}
    assert status(cluster, folder)["pairs"]["step"] == 3
    again = cluster.run(*command, cwd=tmp_path).stdout
    assert submitted(again) == {}
    assert "ndcg@10" in again


def test_a_step_that_fails_cancels_those_that_read_it_and_another_command_goes_on_from_there(cluster, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "fails-pairs").touch()
    folder = tmp_path / "out"
    command = [*BGETRAIN, f"recipe={tmp_path}/small.yaml", f"output_dir={folder}", *quick(tmp_path)]
    jobs = submitted(cluster.run(*command, cwd=tmp_path).stdout)
    cluster.wait(jobs["pairs"], {"FAILED"})
    for step in ("evaluate-pairs", "evaluate-again"):
        cluster.wait(jobs[step], {"CANCELLED"})
    cluster.wait(jobs["evaluate-random"])
    rows = status(cluster, folder)
    assert {step: row["state"] for step, row in rows.items()} == {
        "tokenizer": "done",
        "evaluate-random": "done",
        "pairs": "failed",
        "evaluate-pairs": "cancelled",
        "evaluate-again": "cancelled",
    }
    assert rows["pairs"]["why"] == "data.path=nowhere: no such folder"
    assert rows["evaluate-pairs"]["why"] == "pairs has failed"
    assert rows["evaluate-again"]["why"] == "evaluate-pairs was cancelled"

    (tmp_path / "fails-pairs").unlink()
    again = submitted(cluster.run(*command, cwd=tmp_path).stdout)
    assert list(again) == ["pairs", "evaluate-pairs", "evaluate-again"]
    cluster.wait(again["evaluate-again"])
    assert {row["state"] for row in status(cluster, folder).values()} == {"done"}


def test_a_sweep_is_an_array_of_which_so_many_tasks_run_at_once_as_asked(cluster, tmp_path):
    folder = tmp_path / "sweep"
    words = ["stage=tokenizer", "data=text", "data.files=[x]", f"output_dir={folder}", *quick(tmp_path)]
    said = cluster.run(*BGETRAIN, "-m", *words, "seed=1,2,3", "cluster.array_parallel=1", cwd=tmp_path).stdout
    job = re.search(r"^job (\d+): an array of 3, 1 node of 1 rank each", said, re.M)[1]
    for task in range(3):
        cluster.wait(f"{job}_{task}")
    assert cluster.job(f"{job}_0")["ArrayTaskThrottle"] == "1"
    assert [yaml.safe_load((folder / str(task) / "config.yaml").read_text())["seed"] for task in range(3)] == [1, 2, 3]
    rows = status(cluster, folder)
    assert {row["job"] for row in rows.values()} == {f"{job}_{task}" for task in range(3)}
    assert {row["state"] for row in rows.values()} == {"done"}
    assert "job" not in cluster.run(*BGETRAIN, "-m", *words, "seed=1,2,3", "cluster.array_parallel=1", cwd=tmp_path).stdout
