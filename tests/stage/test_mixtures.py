"""Mixtures and length buckets through the whole stage: the same on one rank and two, each source under its own loss."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import sentence

NAMES = ("short", "long")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """12 short and 20 long rows, each with two negatives."""
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for number, (name, count, longest) in enumerate((("short", 12, 4), ("long", 20, 14))):
        found[name] = folder / f"{name}.jsonl"
        rows = [
            {
                "query": sentence(1000 * number + row, longest),
                "pos": [sentence(1000 * number + 100 + row, longest)],
                "neg": [sentence(1000 * number + each * 100 + row, longest) for each in (2, 3)],
            }
            for row in range(count)
        ]
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return found


def run(world, overrides: list[str]) -> list[dict]:
    from omegaconf import OmegaConf

    from bgetrain import config, distributed, output
    from bgetrain.stage import contrastive

    cfg: Any = OmegaConf.to_container(config.compose(overrides), resolve=True)
    if world.rank == 0:
        output.claim(cfg)
    distributed.barrier(world)
    logged: list[dict] = []
    contrastive.run(cfg, world, lambda step, metrics: logged.append(metrics))
    return logged


def several(world, runs: dict[str, list[str]], folder: Path) -> dict[str, list[dict]]:
    return {name: run(world, [*overrides, f"output_dir={folder}/{world.size}-{name}"]) for name, overrides in runs.items()}


def overrides(model: Path, *more: str) -> list[str]:
    plain = [
        "stage=finetune", "optim=sgd", "precision=fp32", "log_every=1",
        "preflight=false", "total_steps=6", "chunk_tokens=60", "group_size=3",
        f"model.path={model}", "model.dropout=0", "optim.lr=0.3", "engine.gradient_clipping=0", "loss.temperature=0.1",
        "data.query_max_len=24", "data.passage_max_len=24",
    ]  # fmt: skip
    return [*plain, *more]


def test_mixtures_and_buckets_train_alike_on_any_number_of_ranks(spawn, model_folder, files, tmp_path):
    def mixture(*more: str, **keys: str) -> list[str]:
        nodes = [f"{name}: {{data: jsonl, files: [{files[name]}]{keys.get(name, '')}}}" for name in NAMES]
        return overrides(model_folder, "data=mixture", "data.sources={" + ", ".join(nodes) + "}", *more)

    def alone(name: str, *more: str) -> list[str]:
        return overrides(model_folder, "data=jsonl", f"data.files=[{files[name]}]", *more)

    short, long = ", global_batch: 12, loss: {temperature: 0.05, negatives: group}", ", group_size: 2, symmetric: true, epochs: 2"
    runs = {
        "whole": mixture("global_batch=20", short=short),
        "kinds": mixture("global_batch=12", short=", epochs: 1", long=long),
        "mixed": mixture("global_batch=9", "data.batches=mixed", "data.power=0.5"),
        "buckets": alone("long", "global_batch=4", "length_buckets=[12,24]", "batch_tokens=240"),
        "short": alone("short", "global_batch=12", "loss.temperature=0.05", "loss.negatives=group"),
        "long": alone("long", "global_batch=20"),
    }
    one = spawn(1, several, runs, tmp_path)[0]
    two = spawn(2, several, runs, tmp_path)[0]
    for name in runs:
        assert len(one[name]) == 6
        for ours, other in zip(one[name], two[name], strict=True):
            for figure in ("loss", "grad_norm"):
                assert ours[figure] == pytest.approx(other[figure], rel=1e-5), (name, figure)
    # each source is as large as its batch: the first step of the mixture that takes it is the step of a run of it alone
    first = one["whole"][0]
    taken = next(name for name in NAMES if f"loss/{name}" in first)
    assert first[f"loss/{taken}"] == first["loss"] == pytest.approx(one[taken][0]["loss"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(one[taken][0]["grad_norm"], rel=1e-5)
    assert {name for step in one["whole"] for name in NAMES if f"loss/{name}" in step} == set(NAMES)
    assert not any(key.startswith("loss/") for step in one["mixed"] for key in step)
    assert {key for step in one["buckets"] for key in step if key.startswith("loss/")} <= {
        "loss/data=jsonl:12",
        "loss/data=jsonl:24",
    }


def pretrain(world, arguments: list[str]) -> None:
    from ranks import run_stage

    run_stage(world, arguments)


def test_pre_training_takes_mixtures_of_texts(spawn, model_folder, files, tmp_path):
    sources = ", ".join(f"{name}: {{data: jsonl, files: [{files[name]}], weight: {n + 1}}}" for n, name in enumerate(NAMES))
    more = ["total_steps=4", "global_batch=6", "chunk_tokens=60", "data.passage_max_len=24", f"output_dir={tmp_path}/out"]
    spawn(1, pretrain, ["stage=retromae", "data=mixture", f"data.sources={{{sources}}}", f"model.path={model_folder}", *more])
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def alone(files, model: Path, *more: str) -> list[str]:
    return overrides(model, "data=jsonl", f"data.files=[{files['long']}]", "global_batch=4", "length_buckets=[8,24]", *more)


def sizes(world, arguments: list[str], steps: int) -> dict[str, list[int]]:
    """Feed name -> sizes of its global batches, from what the stage would train on."""
    from omegaconf import OmegaConf

    from bgetrain import config, output
    from bgetrain.stage import build, supply

    cfg: Any = OmegaConf.to_container(config.compose(arguments), resolve=True)
    output.claim(cfg)
    source = build.source(cfg, world)
    body = build.body(cfg, source, world, masked_lm=False)
    made = supply.contrastive(cfg, source, supply.opened(source, lambda each: each.rows), body.tokenizer, world)
    found: dict[str, list[int]] = {}
    for step in range(1, steps + 1):
        found.setdefault(made.feeds[made.plan.source(step)].name, []).append(made.plan.size(step))
    return found | {"rows": [len(feed.rows) for feed in made.feeds]}


def test_a_budget_of_tokens_makes_larger_batches_of_short_rows(spawn, model_folder, files, tmp_path):
    more = ["batch_tokens=192", f"output_dir={tmp_path}/out"]
    found = spawn(1, sizes, alone(files, model_folder, *more), 20)[0]
    # a query and three passages: 192 / (4 x 8) and 192 / (4 x 24), rows as their longest text is
    assert {name: set(each) for name, each in found.items() if name != "rows"} == {
        name: {batch} for name, batch in (("data=jsonl:8", 6), ("data=jsonl:24", 2)) if name in found
    }
    assert sum(found["rows"]) == 20


def test_lengths_are_measured_anew_when_the_data_or_its_limits_change(spawn, model_folder, files, tmp_path):
    mine = {"long": tmp_path / "mine.jsonl"}
    lines = files["long"].read_text("utf8").splitlines(keepends=True)
    for count, limit in ((20, 24), (12, 24), (12, 16)):
        mine["long"].write_text("".join(lines[:count]), "utf8")
        more = [f"output_dir={tmp_path}/out", "resume=force", f"data.passage_max_len={limit}"]
        plain = [each for each in alone(mine, model_folder) if not each.startswith("data.passage_max_len")]
        assert sum(spawn(1, sizes, [*plain, *more], 3)[0]["rows"]) == count
        (tmp_path / "out" / "metrics.jsonl").write_text("{}\n")  # a run that has something to lose is gone on with
    assert len(list((tmp_path / "out" / "lengths").iterdir())) == 3
