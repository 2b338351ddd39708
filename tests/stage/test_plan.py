"""stage=plan: the paper's set-ups, what it says of mistakes, and its memory beside that of a real step."""

import json
import resource
import subprocess
import sys
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from bgetrain import cli, config, planning, recipe_file, selection
from bgetrain.stage import plan, shapes, told

PAPER = ["plan.gpu=a100-40g", "plan.search=false", "plan.json=-"]


def planned(capsys, *overrides: str) -> dict:
    """The figures of a plan."""
    capsys.readouterr()
    assert planning.run(["stage=plan", "plan.json=-", *overrides]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_papers_contrastive_stage_fits_into_40_gb(capsys):
    """C-Pack: 48 A100-40G; bge-large, 32,784 pairs of 128 tokens, fp16, checkpointing, ZeRO-1; steps and cost by hand."""
    found = planned(
        capsys, "plan.stage=pairs", *PAPER[:2], "plan.gpus=48", "model.path=BAAI/bge-large-en-v1.5", "global_batch=32784",
        "precision=fp16", "plan.rows=327840", "plan.price=2",
    )["steps"][0]  # fmt: skip
    assert found["fits"]
    assert found["peak_bytes"] < 36e9
    assert found["parameters"] == 334_092_288  # 335 M with its pooler
    assert found["tokens_per_step"] == 32784 * 2 * 128
    assert found["steps"] == 10
    assert found["cost"] == pytest.approx(2 * 48 * found["hours"])
    # 335 M in fp16, sums of gradients in fp32, a 48th of fp32 weights and moments
    assert found["moments"]["backward"]["weights"] == 2 * 334_092_288
    assert found["moments"]["backward"]["gradients"] == 4 * 334_092_288
    # three times the forward pass, and one more for what is computed anew: 2 x 302 M weights a token, and attention
    weights = 24 * 12 * 1024**2
    assert found["flops_per_step"] == pytest.approx(32784 * 2 * 128 * (8 * weights + 24 * 4.5 * 4 * 128 * 1024), rel=0.02)


def test_the_papers_first_stage_fits_into_40_gb_without_checkpointing_by_another_chunk(capsys):
    """24 GPUs, 720 texts of 512 tokens: 30 on each."""
    found = planned(
        capsys, "plan.stage=retromae", *PAPER[:2], "plan.gpus=24", "model.path=google-bert/bert-large-uncased", "global_batch=720"
    )["steps"][0]
    assert found["fits"]
    assert found["texts_per_rank"] == 30
    assert found["chunks"] == 2


def keys() -> dict[str, Any]:
    """Of a plan without a search."""
    own: Any = OmegaConf.to_container(config.compose(["stage=plan", "plan.search=false", "plan.json=-"]), resolve=True)
    return own["plan"]


def test_each_step_of_a_recipe_is_planned_on_the_gpus_of_its_own_job(capsys):
    """BGE-large: 24 GPUs of 40 GB, then 48, as its recipe says; cost is of each step's own GPUs."""
    asked = keys()
    steps = planning.steps_of(asked, ["recipe=bge-large-en"])
    first = [step for step in steps if step.name in ("retromae", "pairs")]
    found = plan.run({**asked, "price": 2}, first)
    retromae, pairs = found["steps"]
    assert (retromae["ranks"], pairs["ranks"]) == (24, 48)
    assert (retromae["precision"], pairs["precision"]) == ("fp16", "fp16")
    assert retromae["choice"]["model.gradient_checkpointing"]
    assert pairs["choice"]["model.gradient_checkpointing"]
    assert retromae["fits"]
    assert pairs["fits"]
    assert pairs["texts_per_rank"] == 683 * 3
    gpu_hours = 24 * retromae["hours"] + 48 * pairs["hours"]
    assert found["total"]["gpu_hours"] == pytest.approx(gpu_hours)
    assert found["total"]["cost"] == pytest.approx(2 * gpu_hours)
    sizes = {step.name: shapes.size(step.cfg, asked)["gpus"] for step in steps}
    assert {sizes[name] for name in sizes if name not in ("retromae", "pairs")} == {8}
    assert shapes.size(steps[0].cfg, {**asked, "gpus": 6}) == {"gpus": 6, "gpus_per_machine": 8}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in selection.RECIPES.glob("*.yaml")))
def test_every_recipe_starts_from_a_model_whose_shape_is_known(recipe):
    """None needs the hub to be planned: names of `plan.shapes`, or what a step before leaves."""
    known = yaml.safe_load((selection.CONF / "stage" / "plan.yaml").read_text("utf8"))["plan"]["shapes"]
    for name, listed in recipe_file.load(recipe).items():
        if any(f"stage={stage}" in listed for stage in plan.TRAINING):
            paths = [each.partition("=")[2] for each in listed if each.startswith("model.path=")]
            assert paths, name
            assert all("${" in path or path.rpartition("/")[2] in known for path in paths), (name, paths)


def test_steps_that_are_alike_are_shown_once_and_summed_up_in_a_row_each(capsys):
    asked = {**keys(), "price": 2.0, "rows": None}
    alike: dict = {"stage": "mine", "ranks": 8, "precision": "fp16", "moments": {"encode": {"weights": 2e9}}, "fits": True}
    alike |= {"peak_bytes": 2e9, "peak_at": "encode", "allowed_bytes": 36e9, "flops_per_query": 10**9, "flops_per_passage": 10**9}
    alike |= {"rows": 10, "embedding_bytes": 40, "embedding_bytes_per_rank": 5, "hours": 1.5, "gpu_hours": 12.0, "cost": 24.0}
    found = [{"step": name, **alike} for name in ("mine-nq", "mine-quora")]
    told.show_all(asked, {"steps": found, "total": plan.total(asked, found)})
    said = capsys.readouterr().out
    assert said.count("at the moments of a step") == 1
    rows = [line.split() for line in said.splitlines()]
    assert ["mine-nq", "8", "2.0", "yes", "-", "1.50", "12.0", "24.00"] in rows
    assert ["mine-quora", "8", "2.0", "yes", "-", "1.50", "12.0", "24.00"] in rows
    assert ["in", "all", "3.00", "24.0", "48.00"] in rows


def test_operations_of_a_step_are_of_its_queries_not_of_the_fullest_rank_times_ranks():
    """49 queries on 48 ranks: one of them has two, and the step takes 49 / 2 of its operations, not 48."""
    asked = {**keys(), "gpus": 48, "shape": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}}
    cfg = planning.plain(["stage=pairs", "model.path=nobody/nothing", "global_batch=49"])
    figures = plan.run(asked, [planning.Step("pairs", cfg)])["steps"][0]
    assert figures["flops_per_step"] == round(figures["flops_per_rank"] * 49 / 2)
    # one sum of fp32 gradients and one gathering of bf16 weights, by hand; a ring sends 47 / 48 of what it gathers
    collectives = {(each["operation"], each["of"]): each for each in figures["collectives"]}
    assert collectives["all_reduce", "gradients"]["calls"] == 1
    assert collectives["all_reduce", "gradients"]["bytes"] == 4 * figures["trained"]
    assert collectives["all_gather", "weights"]["bytes"] == 2 * figures["trained"]
    assert figures["sent_bytes"]["gradients"] == pytest.approx(2 * 47 / 48 * 4 * figures["trained"])


def test_what_does_not_fit_is_told_with_what_would(capsys):
    asked = ["plan.stage=pairs", "plan.gpu=l4", "plan.gpus=1", "model.path=bge-small-en-v1.5", "global_batch=8192"]
    asked += ["model.gradient_checkpointing=false", "step_mode=single"]
    assert planning.run(["stage=plan", *asked]) == 0
    said = capsys.readouterr().out
    assert "does NOT fit" in said
    better = next(line for line in said.splitlines() if line.strip().startswith("better"))
    assert "chunk_tokens=" in better
    choice = dict(each.rstrip(":").split("=") for each in better.split() if "=" in each)
    again = [each for each in asked if each.partition("=")[0] not in choice]
    found = planned(capsys, *again, *(f"{key}={value}" for key, value in choice.items()), "plan.search=false")
    assert found["steps"][0]["fits"]


def test_a_recipe_is_planned_step_by_step_with_totals_and_its_own_models(capsys, tmp_path):
    found = planned(
        capsys, "recipe=quickstart", "plan.gpu=h100", "plan.gpus=8", "plan.price=2.5", "plan.search=false",
        f"output_dir={tmp_path}", "plan.rows_of={evaluate-pairs: 1000}",
    )  # fmt: skip
    steps = {each["step"]: each for each in found["steps"]}
    assert next(iter(steps)) == "tokenizer"
    assert steps["pairs"]["parameters"] == steps["finetune"]["parameters"] < steps["retromae"]["parameters"]
    assert found["total"]["cost"] == pytest.approx(
        2.5 * 8 * sum(each["hours"] for each in steps.values() if each.get("hours") is not None)
    )
    assert "mine" in found["total"]["unknown"]
    assert steps["evaluate-pairs"]["embedding_bytes"] == 4 * 1000 * 256
    assert not list(tmp_path.iterdir())


def test_a_device_of_ones_own_and_a_shape_that_is_nowhere(capsys):
    found = planned(
        capsys, "plan.stage=finetune",
        "plan.devices.mine={memory_gb: 12, bf16: 50, fp16: 50, fp32: 20, bandwidth: 300, link: 16}",
        "plan.gpu=mine", "plan.gpus=1", "model.path=nobody/nothing", "plan.shape={hidden_size: 256, num_hidden_layers: 2}",
        "plan.shape.num_attention_heads=4", "plan.search=false",
    )["steps"][0]  # fmt: skip
    assert found["allowed_bytes"] == 0.9 * 12e9
    assert found["parameters"] == (30522 + 512 + 2 + 2) * 256 + 2 * (4 * 256 * 257 + 256 * 3073 + 3072 * 257 + 4 * 256)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["plan.gpu=h1000"], "did you mean h100?"),
        (["plan.gpuss=8"], "did you mean plan.gpus"),
        (["plan.stage=pair"], "did you mean pairs?"),
        ([], "plan.stage is missing"),
        (["plan.stage=pairs", "globl_batch=8"], "did you mean global_batch?"),
        (["plan.stage=pairs", "recipe=quickstart"], "give one of the two"),
        (["recipe=quickstart", "plan.rows_of={pears: 3}"], "did you mean pairs?"),
        (["plan.stage=pairs", "plan.json=/nonexistent/plan.json"], "plan.json=/nonexistent/plan.json cannot be written"),
        (["plan.stage=pairs", "plan.json=/"], "plan.json=/ cannot be written"),
        (["plan.stage=pairs", "plan.gpus=0"], "plan.gpus must be a whole number above 0"),
    ],
)
def test_a_mistake_is_answered_with_the_nearest_name(overrides, said, capsys):
    assert cli.main(["stage=plan", *overrides]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_mistake_is_answered_before_torch_is_imported():
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = "import sys; from bgetrain import cli; print(cli.main(['stage=plan', 'plan.gpu=h1000']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 3  # seconds; with torch it is 6


def test_help_lists_the_keys(capsys):
    assert cli.main(["stage=plan", "--help"]) == 0
    said = capsys.readouterr().out
    assert "plan.memory_share=0.9" in said
    assert "plan.devices.a100-40g={" in said
    assert "bge-large-zh-v1.5" in said
    lines = said.splitlines()
    assert max(map(len, lines)) <= 130
    assert len(lines) < 90  # nothing letter by letter


def measured(world, modes: list[str]) -> dict[str, int]:
    """Bytes at the peak of two steps of each mode, less what a tiny model leaves behind."""
    import ctypes
    import gc
    from pathlib import Path

    import torch
    from transformers import BertModel

    from bgetrain.engine.chunked import cached_step, single_step
    from bgetrain.engine.deepspeed import start
    from bgetrain.model.bi_encoder import BiEncoder
    from bgetrain.optim.adamw import adamw
    from bgetrain.types import LossOutput

    for name, value in ((-1, 65536), (-3, 65536), (-8, 1)):  # mallopt's trim and mmap thresholds, and arenas
        ctypes.CDLL(None).mallopt(name, value)

    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text("utf8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

    def steps_of(width: int, texts: int, take) -> None:
        module = BiEncoder(BertModel(bert(width), add_pooling_layer=False), "cls", packed=True).train()
        rates = {"lr": 1e-4, "weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "warmup_ratio": 0.0}
        optimizer, _ = adamw(module.named_parameters(), **rates)
        keys = {"precision": "fp32", "world": world, "gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}
        engine = start(module, optimizer, **keys)
        chunks = [(torch.ones(texts // 4 * 64, dtype=torch.int64), torch.full((texts // 4,), 64)) for _ in range(4)]
        for _ in range(2):
            loss = lambda embeddings, shift: LossOutput((embeddings @ embeddings.T).square().sum(), {})  # noqa: E731
            take(engine, chunks, torch.arange(texts), [1, 2, 3, 4], loss)
            engine.step()
        engine.core.destroy()

    found = {}
    for mode in modes:
        take = {"single": single_step, "cached": cached_step}[mode]
        steps_of(32, 4, take)
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", "utf8")  # the peak counts from here
        steps_of(256, 256, take)
        found[mode] = resident("VmHWM") - before
    return found


def bert(width: int):
    from transformers import BertConfig

    shape = {"vocab_size": 4000, "num_hidden_layers": 3, "num_attention_heads": 4}
    return BertConfig(hidden_size=width, intermediate_size=4 * width, **shape)


def test_memory_of_real_steps_is_foreseen_within_15_percent(spawn):
    """3 layers x 256, 256 texts of 64 tokens in 4 chunks, fp32, ZeRO-1, one rank; freed blocks go back to the system at once."""
    from bgetrain.forecast import passes, states, steps

    modes = ["cached", "single"]
    setting = passes.Setting("cpu", passes.torch.float32, False, False)
    module = passes.bi_encoder(passes.Encoder(bert(256), "cls", None), setting)
    held = states.states(passes.counts(module), states.Plan(1, "fp32", 1, "cpu", 2, states.BUCKET))
    scores = steps.Scores(texts=256, queries=128, pool=128, gathered=False, width=256, tile=256, widths=0, guide=0)
    work = steps.work({64: 256}, 64 * 64)
    for mode, peak in spawn(1, measured, modes)[0].items():
        found = steps.contrastive(held, work, lambda shape: passes.encoded(module, setting, *shape, training=True), scores, mode)
        assert 0.85 < steps.peak(found)[1] / peak < 1.15, (mode, steps.peak(found), peak)
