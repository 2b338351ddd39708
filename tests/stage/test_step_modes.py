"""Single and cached steps with dropout, bf16 against fp32, and a step without labels or with a loss that is not finite."""

import json
from pathlib import Path
from typing import Any

import pytest


def configure(model: Path, data: Path | None, output: Path, /, **changes: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from bgetrain import config

    chosen = {
        "stage": "finetune", "data": "beir", "optim": "sgd", "engine": "zero1", "precision": "fp32",
        "log_every": 1, "total_steps": 1, "global_batch": 12, "group_size": 1, "chunk_tokens": 60, "step_mode": "cached",
        "model.path": model, "model.dropout": 0.2, "loss.temperature": 0.1, "optim.lr": 0.3, "engine.gradient_clipping": 0,
        "output_dir": output, "data.query_max_len": 24, "data.passage_max_len": 24, "preflight": "false",
    } | ({"data.path": data} if data else {}) | changes  # fmt: skip
    return OmegaConf.to_container(config.compose([f"{key}={value}" for key, value in chosen.items()]), resolve=True)


def run(world, cfg: dict[str, Any]) -> list[dict]:
    from bgetrain import distributed, output
    from bgetrain.stage import contrastive

    if world.rank == 0:
        output.claim(cfg)
    distributed.barrier(world)
    logged: list[dict] = []
    contrastive.run(cfg, world, lambda step, metrics: logged.append(metrics))
    return logged


def several(world, cfgs: list[dict[str, Any]], packed: bool = True) -> list[list[dict]]:
    from bgetrain.stage import embed

    embed.can_pack = lambda backbone, device: packed
    return [run(world, cfg) for cfg in cfgs]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_cached_equals_single_bit_for_bit_with_dropout(checkpointing, packed, spawn, model_folder, beir_folder, tmp_path):
    cfgs = []
    for zero in ("zero0", "zero1"):
        for mode in ("single", "cached"):
            changes = {"step_mode": mode, "engine": zero, "model.gradient_checkpointing": checkpointing}
            cfgs.append(configure(model_folder, beir_folder, tmp_path / f"{zero}-{mode}", **changes))
    cfgs.append(configure(model_folder, beir_folder, tmp_path / "without", **{"model.dropout": 0}))
    logged = spawn(1, several, cfgs, packed)[0]
    weights = [(Path(cfg["output_dir"]) / "model" / "model.safetensors").read_bytes() for cfg in cfgs]
    for number in (0, 2):
        assert logged[number][0]["loss"] == logged[number + 1][0]["loss"]
        assert logged[number][0]["grad_norm"] == logged[number + 1][0]["grad_norm"]
        assert weights[number] == weights[number + 1]
    assert abs(logged[0][0]["loss"] - logged[4][0]["loss"]) > 1e-4  # there was dropout


def test_bf16_trains_with_losses_within_two_percent_of_fp32(spawn, model_folder, beir_folder, tmp_path):
    cfgs = [
        configure(model_folder, beir_folder, tmp_path / precision, precision=precision, total_steps=8, **{"model.dropout": 0})
        for precision in ("fp32", "bf16")
    ]
    exact, rounded = spawn(1, several, cfgs)[0]
    for ours, expected in zip(rounded, exact, strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert rounded[0]["loss"] != exact[0]["loss"]
    assert exact[-1]["loss"] < exact[0]["loss"]
    assert rounded[-1]["loss"] < rounded[0]["loss"]


def broken(world, cfgs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trains; from step 2 on the first run's model has an infinite embedding of unknown words."""
    import torch

    from bgetrain.stage import contrastive

    plain, seen = contrastive.update_once, {}

    def update(*arguments):
        cfg, engine, supplied, *_, step, batch = arguments
        if step == 2:
            seen.update(rows=batch.rows.tolist(), engine=engine, weights=engine.weights())
            if cfg["loss"]["temperature"] == 0.1:
                engine.core.module.backbone.embeddings.word_embeddings.weight.data[1] = torch.inf
            else:
                supplied.losses[0]["temperature"] = 1e-40
        return plain(*arguments)

    contrastive.update_once = update
    found = []
    for cfg in cfgs:
        with pytest.raises(FloatingPointError) as caught:
            run(world, cfg)
        now = seen["engine"].weights()
        changed = [name for name, each in seen["weights"].items() if not torch.equal(each, now[name])]
        found.append({"said": str(caught.value), "rows": seen["rows"], "changed": changed})
    return found


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update_and_names_step_rank_and_rows(spawn, model_folder, tmp_path):
    """One row's passage has an infinite embedding, which spoils every query's loss; then all losses overflow."""
    from conftest import sentence

    from bgetrain.engine import checkpoint

    rows = [{"query": sentence(n, 5), "pos": [sentence(50 + n, 9)], "neg": [sentence(90 + n, 9)]} for n in range(8)]
    rows[5]["neg"] = ["bad zzz"]  # no z in the vocabulary
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfgs = []
    for name, temperature in (("embedding", 0.1), ("loss", 0.2)):
        changes = {"data": "jsonl", "data.files": f"[{file}]", "global_batch": 8, "group_size": 2, "save_every": 1}
        changes |= {"total_steps": 3, "loss.temperature": temperature, "model.dropout": 0, "step_mode": "cached"}
        cfgs.append(configure(model_folder, None, tmp_path / name, **changes))
    ranks = spawn(2, broken, cfgs)
    guilty = next(rank for rank, found in enumerate(ranks) if 5 in found[0]["rows"])
    folder = tmp_path / "embedding" / "nonfinite"
    written = folder / f"step_2.rank_{guilty}.jsonl"
    words = f"loss is not finite at step 2 on rank {guilty}: nan, by 1 row, written to {written}"
    assert [found[0]["said"] for found in ranks] == [words, words]
    assert list(folder.iterdir()) == [written]
    assert [json.loads(line) for line in written.read_text().splitlines()] == [{"where": f"{file}:6", **rows[5]}]
    folder = tmp_path / "loss" / "nonfinite"
    words = f"loss is not finite at step 2 on ranks 0, 1: nan, by 8 rows, written to {folder}/step_2.rank_*.jsonl"
    assert [found[1]["said"] for found in ranks] == [words, words]
    for rank, found in enumerate(ranks):
        lines = [json.loads(line) for line in (folder / f"step_2.rank_{rank}.jsonl").read_text().splitlines()]
        assert [line["where"] for line in lines] == [f"{file}:{row + 1}" for row in found[1]["rows"]]
        assert found[1]["changed"] == []
        assert set(found[0]["changed"]) <= {"backbone.embeddings.word_embeddings.weight"}  # what the test itself spoilt
    for cfg in cfgs:
        assert checkpoint.steps(Path(cfg["output_dir"]) / "checkpoints") == [1]
        assert not (Path(cfg["output_dir"]) / "model").exists()


def chosen(world, cfgs: list[dict[str, Any]], limits: list[list[int] | None]) -> list[tuple[list[str], str]]:
    """The modes of each run's steps, and what was announced; `limits` in bytes for each rank, in place of the config's."""
    from bgetrain.engine import memory
    from bgetrain.logger import console
    from bgetrain.stage import contrastive

    taken, said = [], []
    plain_plan = memory.plan
    console.show = lambda title, rows: said.append(rows["step mode"])
    for name in ("single_step", "cached_step"):
        step = getattr(contrastive, name)
        setattr(contrastive, name, lambda *each, step=step, name=name: taken.append(name) or step(*each))
    found = []
    for cfg, limit in zip(cfgs, limits, strict=True):
        memory.plan = lambda *each, limit=limit: plain_plan(*each)._replace(**({"limit": limit[world.rank]} if limit else {}))
        taken.clear()
        run(world, cfg)
        found.append((list(taken), said.pop() if world.rank == 0 else ""))
    return found


def test_auto_takes_what_fits_on_every_rank_and_either_way_gives_the_same_weights(spawn, model_folder, beir_folder, tmp_path):
    """At ZeRO-2 and 3, where ranks that disagreed would hang; weights of both modes within 1e-6."""
    from safetensors.torch import load_file
    from torch.testing import assert_close

    cfgs, limits, expected = [], [], []
    for zero in (2, 3):
        for limit, mode in ((1e-6, "cached"), (100, "single"), ([10**12, 10], "cached"), (None, "single")):
            changes = {"step_mode": "auto", "engine": f"zero{zero}", "model.dropout": 0, "total_steps": 2}
            if isinstance(limit, float | int):
                changes["memory_limit"] = limit
            cfgs.append(configure(model_folder, beir_folder, tmp_path / str(len(cfgs)), **changes))
            limits.append(limit if isinstance(limit, list) else None)
            expected.append(mode)
    ranks = spawn(2, chosen, cfgs, limits)
    for number, mode in enumerate(expected):
        assert all(rank[number][0] == [f"{mode}_step"] * 2 for rank in ranks), number
    said = [words for _, words in ranks[0]]
    assert said[0].startswith("cached: single would keep 0.000")
    assert said[0].endswith("GB of activations, 1e-06 GB are allowed by memory_limit")
    assert said[1].startswith("single: single keeps 0.000")
    assert said[3].endswith("GB are free (80% of what DeepSpeed leaves)")
    weights = [load_file(Path(cfg["output_dir"]) / "model" / "model.safetensors") for cfg in cfgs]
    for other in weights[1:]:
        assert_close(other, weights[0], rtol=0, atol=1e-6)
