"""A run that is stopped and goes on in new processes against one that never stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

TOTAL, HALF = 13, 3


def configure(
    model: Path,
    data: Path,
    output: Path,
    *,
    optim: str,
    dropout: float,
    zero: int,
    precision: str,
    threshold: int,
    log_every: int = 1,
) -> Any:
    from omegaconf import OmegaConf

    from bgetrain import config

    chosen = [
        "stage=finetune", "data=beir", f"data.path={data}", f"optim={optim}", f"engine=zero{zero}", f"precision={precision}",
        f"log_every={log_every}", "save_every=1000", f"total_steps={TOTAL}", "global_batch=7", "group_size=1", "chunk_tokens=60",
        "step_mode=cached", f"model.path={model}", f"model.dropout={dropout}", "loss.temperature=0.1", f"output_dir={output}",
        "optim.lr=0.003", "optim.weight_decay=0.1", "data.query_max_len=24", "data.passage_max_len=24", "preflight=false",
    ]  # fmt: skip
    if optim == "sgd":
        chosen += ["optim.momentum=0.9", "optim.lr=0.3"]
    if zero == 3:
        chosen.append(f"+engine.zero_optimization.stage3_param_persistence_threshold={threshold}")
        chosen.append("+engine.zero_optimization.stage3_max_reuse_distance=0")  # saves time, not a result
    return OmegaConf.to_container(config.compose(chosen), resolve=True)


def run(world, cfg: Any, stop_after: int | None) -> tuple[list[tuple[int, float, float]], dict[int, list[int]]]:
    """Trains, as the command line does, and stops after a step as a Ctrl-C in it would.

    Returns:
        (step, loss, grad_norm) of each line, and the rows that this rank saw in each step.
    """
    import signal

    from bgetrain import cli, distributed, output
    from bgetrain.stage import contrastive
    from bgetrain.types import Interrupted

    if world.rank == 0:
        output.claim(cfg)
    distributed.barrier(world)
    seen, rows = [], {}
    plain = contrastive.update_once

    def update(*arguments):
        step, batch = arguments[-2:]
        rows[step] = batch.rows.tolist()
        if step == stop_after:
            signal.raise_signal(signal.SIGINT)
        return plain(*arguments)

    contrastive.update_once = update
    try:
        with cli.logs(cfg, world.rank) as write:

            def log(step, metrics):
                seen.append((step, metrics["loss"], metrics["grad_norm"]))
                if world.rank == 0:
                    write(step, metrics)

            contrastive.run(cfg, world, log)
        assert stop_after is None
    except Interrupted:
        assert stop_after is not None
    finally:
        contrastive.update_once = plain
    return seen, rows


def several(world, jobs: list[tuple[Any, int | None]]) -> list[Any]:
    return [run(world, *job) for job in jobs]


@pytest.mark.parametrize("zero", [0, 1])
def test_adamw_with_dropout_goes_on_bit_for_bit_in_a_new_process(zero, spawn, model_folder, beir_folder, tmp_path):
    """The stop lies in the middle of a line's window."""
    settings = {"optim": "adamw", "dropout": 0.2, "zero": zero, "precision": "fp32", "threshold": 0, "log_every": 2}
    once, twice = (configure(model_folder, beir_folder, tmp_path / name, **settings) for name in ("once", "twice"))
    (whole, _), (first, _) = spawn(1, several, [(once, None), (twice, HALF)])[0]
    # a line that a killed run logged after its checkpoint
    with (tmp_path / "twice" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": HALF + 1, "loss": -1.0}) + "\n")
    ((second, _),) = spawn(1, several, [(twice, None)])[0]
    assert [step for step, *_ in whole] == [1, 2, 4, 6, 8, 10, 12, 13]
    assert first == whole[:2]
    assert second == whole[2:]
    lines = [json.loads(line) for line in (tmp_path / "twice" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["grad_norm"]) for line in lines] == whole
    same = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("once", "twice")]
    assert same[0] == same[1]


PLACES = [(1, 0, 0), (1, 2, 0), (1, 3, 0), (2, 0, 0), (2, 3, 0), (4, 1, 0), (4, 2, 0), (4, 3, 0), (4, 3, 100_000)]


@pytest.mark.parametrize(("optim", "precision"), [("adamw", "fp32"), ("sgd", "fp32"), ("adamw", "bf16")])
def test_a_checkpoint_of_two_ranks_zero1_goes_on_under_other_ranks_and_stages(
    optim, precision, spawn, model_folder, beir_folder, tmp_path
):
    """Losses of ten steps to rtol 1e-5 in fp32, of three to 1e-2 in bf16, whose sums differ with the cut into ranks; all rows."""
    import shutil

    fixed = {"optim": optim, "dropout": 0, "precision": precision}

    def made(name: str, zero: int, threshold: int = 0) -> Any:
        return configure(model_folder, beir_folder, tmp_path / name, zero=zero, threshold=threshold, **fixed)

    replies = spawn(2, several, [(made("once", 1), None), (made("half", 1), HALF)])
    (whole, _), (first, _) = replies[0]
    assert first == whole[:HALF]
    rows = joined(reply[0][1] for reply in replies)
    assert joined(reply[1][1] for reply in replies) == {step: rows[step] for step in range(1, HALF + 1)}
    order = [row for step in rows for row in rows[step]]
    assert sorted(order[:16]) == sorted(order[16:32]) == list(range(16))  # an epoch has each row once
    places = PLACES if (optim, precision) == ("adamw", "fp32") else [(1, 2, 0), (4, 3, 0)]
    for size in (1, 2, 4):
        jobs = []
        for _, zero, threshold in [place for place in places if place[0] == size]:
            name = f"{size}-{zero}-{threshold}"
            shutil.copytree(tmp_path / "half", tmp_path / name)
            cfg = made(name, zero, threshold)
            jobs.append((cfg, None))
        replies = spawn(size, several, jobs) if jobs else [[]]
        for number, (cfg, _) in enumerate(jobs):
            second = replies[0][number][0]
            assert [step for step, *_ in second] == list(range(HALF + 1, TOTAL + 1))
            assert joined(reply[number][1] for reply in replies) == {step: rows[step] for step in range(HALF + 1, TOTAL + 1)}
            tolerance, count = (1e-5, TOTAL) if precision == "fp32" else (1e-2, 3)
            for ours, expected in zip(second[:count], whole[HALF:], strict=False):
                assert ours[1] == pytest.approx(expected[1], rel=tolerance), cfg["output_dir"]


def joined(ranks) -> dict[int, list[int]]:
    """Step -> rows of the global batch, in its order."""
    found: dict[int, list[int]] = {}
    for own in ranks:
        for step, rows in own.items():
            found.setdefault(step, []).extend(rows)
    return found


def load_others(world, model: Path, data: Path, output: Path) -> list[str]:
    import torch

    from bgetrain.engine import commit
    from bgetrain.stage import build

    right = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}
    exp_avg = {f"{name}/exp_avg": torch.zeros_like(each) for name, each in right.items()}
    said = []
    for weights, moments in [({"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, {}), ({}, {}), (right, exp_avg)]:
        cfg = configure(model, data, output, optim="sgd", dropout=0, zero=0, precision="fp32", threshold=0)
        engine, _ = build.engine(cfg, torch.nn.Linear(2, 3), world)
        folder = output / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        part = commit.write_part(folder, 1, 0, 1, weights | moments)
        commit.commit(folder, {"step": 1, "counters": {}, "scaler": None, "progress": []}, [part], best=False)
        try:
            build.resumed(cfg, engine, lambda engine=engine: engine.forward(torch.ones(1, 2)).sum())
        except ValueError as error:
            said.append(str(error))
    return said


def test_a_checkpoint_of_another_model_or_optimizer_is_refused_in_one_line(spawn, model_folder, beir_folder, tmp_path):
    (said,) = spawn(1, load_others, model_folder, beir_folder, tmp_path)
    assert said[0] == "weight is [2, 2] in the checkpoint of step 1 but [3, 2] in the model"
    assert said[1] == "the checkpoint of step 1 has no 'weight', it is of another model: use resume=never"
    assert said[2].startswith(
        "the checkpoint of step 1 holds the optimizer states ['exp_avg'], but this optimizer has ['momentum_buffer']: use"
    )


def begun_then_changed(world, model: Path, data: Path, output: Path) -> list[str]:
    from bgetrain.sources import Source
    from bgetrain.stage import results

    cfg = configure(model, data, output, optim="sgd", dropout=0, zero=0, precision="fp32", threshold=0)
    run(world, cfg, HALF)
    said = []
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    try:
        run(world, cfg, None)
    except ValueError as error:
        said.append(str(error))
    made: Any = None
    source: Source | None = None
    (output / "config.yaml").unlink()  # as where the mount has gone, and the folder below it shows
    try:
        results.write_model(cfg, made, {}, source, world)
    except ValueError as error:
        said.append(str(error))
    return said


def test_a_model_that_changed_and_a_folder_that_has_gone_are_told(spawn, model_folder, beir_folder, tmp_path):
    import shutil

    model = shutil.copytree(model_folder, tmp_path / "model")
    (said,) = spawn(1, begun_then_changed, model, beir_folder, tmp_path / "out")
    assert said[0].startswith(f"{model}/config.json has changed since the run in output_dir={tmp_path}/out began: choose another")
    assert said[1].startswith(f"output_dir={tmp_path}/out is no longer there: model/ is not written")
