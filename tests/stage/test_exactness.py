"""stage=pairs and stage=finetune on a closed batch (the data has as many rows as a step) against plain torch.

Whatever the ranks, ZeRO stage, chunks, step mode and checkpointing: the first loss, gradients and grad_norm agree
to rtol 1e-5 and the weights after three SGD steps to 1e-6.
"""

import json
import random
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch.testing import assert_close

STEPS, LR = 3, {"sgd": 0.1, "adamw": 5e-5}


class Case(NamedTuple):
    zero: int
    mode: str = "cached"
    chunk_tokens: int = 60
    clip: float = 0.0
    group_size: int = 1
    negatives: str = "world"
    rows: int = 8
    pooling: str = "cls"
    checkpointing: bool = False
    packed: bool = True
    loss: str = "plain"
    guided: bool = False
    optim: str = "sgd"


LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "masks": {"mask_equal": True, "mask_margin": 0.02},
    "teacher": {"mask_equal": True, "teacher": "group", "teacher_weight": 0.5, "teacher_temperature": 2.0},
    "matryoshka": {"mask_equal": True, "matryoshka": [8, 32], "matryoshka_weights": [1.0, 3.0], "directions": "both"},
    "learnt": {"mask_equal": True, "learnable_temperature": True},
    "joint": {"mask_equal": True, "directions": "joint", "teacher": "group", "contrastive_weight": 0.7, "tile": 5},
}


def cases(size: int) -> list[Case]:
    """What to try on `size` ranks: every value of a setting on every ZeRO stage that treats it apart, not all products."""
    found = [Case(zero) for zero in range(4)]
    found += [Case(zero, clip=0.05, group_size=3, rows=7) for zero in range(4)]
    found += [Case(1, "single"), Case(3, "single", checkpointing=True, rows=7), Case(2, negatives="rank", group_size=3, rows=7)]
    losses = [name for name in LOSSES if name != "plain"]
    found += [Case(number % 4, group_size=3, rows=7, loss=name) for number, name in enumerate(losses)]
    found += [Case(0, optim="adamw"), Case(3, optim="adamw", rows=7), Case(1, loss="masks", guided=True, rows=7)]
    if size == 2:  # one rank takes the same paths without sending anything; four wait for each other's turn on two cores
        found += [Case(0, "cached", 4000), Case(2, "cached", 4000), *(Case(zero, "single", 4000) for zero in range(4))]
        found += [Case(3, "single"), Case(1, pooling="mean", rows=7), Case(2, checkpointing=True)]
        found += [Case(0, "single", checkpointing=True, rows=7), Case(3, "cached", checkpointing=True, rows=7)]
        found += [Case(1, negatives="group", group_size=3, rows=7), Case(0, "single", negatives="rank")]
        found += [Case(3 - number % 4, "single", 4000, loss=name, group_size=3) for number, name in enumerate(losses)]
        found += [Case(3, loss="learnt"), Case(1, optim="adamw"), Case(2, optim="adamw"), Case(1, checkpointing=True)]
        found += [Case(1, packed=False), Case(3, "single", rows=7, packed=False), Case(2, packed=False, pooling="mean", rows=7)]
    return found


@cache
def composed(zero: int, model: Path, optim: str) -> Any:
    from omegaconf import OmegaConf

    from bgetrain import config

    chosen = [
        "stage=finetune", "data=jsonl", f"optim={optim}", f"engine=zero{zero}", "precision=fp32", "log_every=1",
        "preflight=false",
        "save_every=1000", f"total_steps={STEPS}", "data.files=[]", "data.query_max_len=24", "data.passage_max_len=24",
        "data.query_instruction='find: '", f"model.path={model}", "model.dropout=0", "loss.temperature=0.2",
        f"optim.lr={LR[optim]}", "optim.warmup_ratio=0",
    ]  # fmt: skip
    if zero == 3:  # smaller parameters would not be split; the second key saves time, not a result
        chosen += [f"+engine.zero_optimization.stage3_{key}=0" for key in ("param_persistence_threshold", "max_reuse_distance")]
    return OmegaConf.to_container(config.compose(chosen), resolve=True)


def configure(case: Case, model: Path, data: Path, output: Path) -> dict[str, Any]:
    cfg = deepcopy(composed(case.zero, model, case.optim))
    cfg |= {"step_mode": case.mode, "chunk_tokens": case.chunk_tokens, "group_size": case.group_size}
    cfg |= {"global_batch": case.rows, "output_dir": str(output)}
    cfg["engine"]["gradient_clipping"] = case.clip
    cfg["data"]["files"] = [str(data)]
    cfg["model"] |= {"pooling": case.pooling, "gradient_checkpointing": case.checkpointing}
    cfg["loss"] |= {"negatives": case.negatives, "mask_equal": False} | LOSSES[case.loss]
    # the schedule falls from the peak on; the reference has one rate
    cfg["optim"]["_target_"] = f"{__name__}.steady_{case.optim}"
    cfg["guide_model"] = str(model) if case.guided else None
    return cfg


def train(world, tried: list[Case], cfgs: list[dict[str, Any]]) -> list[dict]:
    """Runs the stage for each case; what rank 0 learns of it, and which rows each rank had."""
    from deepspeed.utils import safe_get_full_grad
    from safetensors.torch import load_file

    from bgetrain import distributed, output
    from bgetrain.engine.deepspeed import Engine
    from bgetrain.stage import contrastive, embed

    found: dict[str, Any] = {}
    plain_step, plain_update = Engine.step, contrastive.update_once

    def step(engine):
        if not found.get("gradients"):
            whole = {name: safe_get_full_grad(each) for name, each in engine.trained().items()}
            found["gradients"] = {name.removeprefix("backbone."): each.clone() for name, each in whole.items()}
        return plain_step(engine)

    def update(*arguments):
        found.setdefault("rows", []).append(arguments[-1].rows.tolist())
        return plain_update(*arguments)

    Engine.step, contrastive.update_once = step, update
    results = []
    for case, cfg in zip(tried, cfgs, strict=True):
        found.clear()
        embed.can_pack = lambda backbone, device, packed=case.packed: packed
        if world.rank == 0:
            output.claim(cfg)
        distributed.barrier(world)
        logged: list[dict] = []
        contrastive.run(cfg, world, lambda step, metrics, logged=logged: logged.append(metrics))
        weights = load_file(Path(cfg["output_dir"]) / "model" / "model.safetensors")
        results.append({**found, "logged": logged, "weights": weights})
    return results


def steady_adamw(named_parameters, **keys):
    from bgetrain.optim.adamw import adamw

    return adamw(named_parameters, **keys)[0], lambda step, total_steps: 1.0


def steady_sgd(named_parameters, **keys):
    from bgetrain.optim.sgd import sgd

    return sgd(named_parameters, **keys)[0], lambda step, total_steps: 1.0


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[int, Path]:
    """Data of 7 and of 8 rows, each with two negatives; texts of 1 to 20 words."""
    from conftest import sentence

    folder = tmp_path_factory.mktemp("data")
    made = {}
    for rows in (7, 8):
        draw = random.Random(rows)
        made[rows] = folder / f"{rows}.jsonl"
        rows_made: list[dict[str, Any]] = []
        for _ in range(rows):
            texts = [sentence(draw.randrange(10**6), longest) for longest in (6, 20, 20, 20)]
            scores = {"pos_scores": [draw.gauss(1, 1)], "neg_scores": [draw.gauss(0, 1), draw.gauss(0, 1)]}
            rows_made.append({"query": texts[0], "pos": [texts[1]], "neg": texts[2:], **scores})
        # texts that are no negatives of each other: a repeated query, a query that is a passage, a positive twice
        rows_made[1]["query"], rows_made[2]["neg"][0], rows_made[3]["neg"][1] = (
            rows_made[0]["query"], rows_made[2]["query"], rows_made[4]["pos"][0]
        )  # fmt: skip
        lines = [json.dumps(row) for row in rows_made]
        made[rows].write_text("\n".join(lines) + "\n", "utf8")
    return made


def pools(case: Case, rows_of_ranks: list[list[int]]) -> list[list[int]]:
    """The rows whose passages each row's query sees."""
    every = list(range(case.rows))
    parts = {"world": [every], "rank": rows_of_ranks, "group": [[row] for row in every]}[case.negatives]
    return [next(part for part in parts if row in part) for row in every]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_step_equals_plain_torch_on_the_whole_batch_for_every_zero_stage_mode_and_chunking(
    size, spawn, model_folder, files, tmp_path
):
    from reference import train as plain

    tried = cases(size)
    cfgs = [configure(case, model_folder, files[case.rows], tmp_path / str(number)) for number, case in enumerate(tried)]
    ranks = spawn(size, train, tried, cfgs, seconds=400)
    references: dict[Any, dict] = {}
    worst = {"loss": 0.0, "norm": 0.0, "weights": 0.0}
    for number, case in enumerate(tried):
        rows = [[rank[number]["rows"][step] for rank in ranks] for step in range(STEPS)]
        assert all(sorted(row for part in parts for row in part) == list(range(case.rows)) for parts in rows), case
        key = (case.rows, case.group_size, case.negatives, case.pooling, case.clip, case.loss, case.guided, case.optim)
        if key not in references:
            references[key] = plain(
                model_folder, files[case.rows], group_size=case.group_size, pools=[pools(case, each) for each in rows],
                pooling=case.pooling, lr=LR[case.optim], clip=case.clip, options=LOSSES[case.loss], guided=case.guided,
                optim=case.optim,
            )  # fmt: skip
        expected, ours = references[key], ranks[0][number]
        losses, norms = ([each[name] for each in ours["logged"]] for name in ("loss", "grad_norm"))
        assert losses == pytest.approx(expected["losses"], rel=1e-5), case
        assert norms == pytest.approx(expected["norms"], rel=1e-5), case
        assert ours["gradients"].keys() == expected["gradients"].keys(), case
        scale = expected["norms"][0]
        for name, gradient in expected["gradients"].items():
            # the true gradient of a key's bias is 0: its rounding is measured against the whole gradient's norm
            atol = 1e-5 * float(gradient.abs().max()) + 2e-6 * scale
            atol += 1e-6 * (name == "temperature_shift")  # a difference of sums of similarities over the temperature
            assert_close(ours["gradients"][name], gradient, rtol=0, atol=atol, msg=lambda m, c=case, n=name: f"{c} {n}: {m}")
        if case.loss == "learnt":
            figures = [each["temperature"] for each in ours["logged"]]
            assert figures == pytest.approx(expected["temperatures"], rel=1e-6)
            assert figures[2] != figures[0]
        for name, weight in expected["weights"].items():
            if case.optim == "adamw" and name.endswith("key.bias"):
                continue  # its true gradient is 0, and AdamW makes steps of the rounding
            assert_close(ours["weights"][name], weight, rtol=0, atol=1e-6, msg=lambda m, c=case, n=name: f"{c} {n}: {m}")
            worst["weights"] = max(worst["weights"], float((ours["weights"][name] - weight).abs().max()))
        worst["loss"] = max(worst["loss"], *(abs(a / b - 1) for a, b in zip(losses, expected["losses"], strict=True)))
        worst["norm"] = max(worst["norm"], *(abs(a / b - 1) for a, b in zip(norms, expected["norms"], strict=True)))
    print(f"{len(tried)} cases on {size} ranks, largest differences: {worst}")
