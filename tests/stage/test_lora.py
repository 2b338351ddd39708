"""model.lora on a closed batch (the data has as many rows as a step) against plain torch and peft.

Whatever the ranks, ZeRO stage, step mode and checkpointing: losses and gradients of the adapters at each of three SGD
steps agree to rtol 1e-5, their weights after the last to 1e-6; `model/` and `adapter/` embed alike to 1e-6.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.testing import assert_close

STEPS, LR, ROWS, RANK, SCALE, SEED = 3, 1.0, 7, 4, 2.0, 5


class Case(NamedTuple):
    zero: int
    mode: str = "cached"
    checkpointing: bool = False
    precision: str = "fp32"


CASES = [Case(zero, mode) for zero in range(4) for mode in ("single", "cached")]
CASES += [Case(0, "single", True), Case(1, "cached", True), Case(2, "single", True), Case(3, "single", True)]
CASES += [Case(3, "cached", True)]
ROUNDED = [Case(1, precision="bf16"), Case(3, precision="bf16")]


def configure(case: Case, model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from bgetrain import config

    chosen = {
        "stage": "finetune", "data": "jsonl", "data.files": f"[{data}]", "optim": "sgd", "engine": f"zero{case.zero}",
        "precision": case.precision, "log_every": 1, "save_every": 1000, "total_steps": STEPS, "global_batch": ROWS,
        "group_size": 2, "chunk_tokens": 60, "step_mode": case.mode, "seed": SEED, "model.path": model, "model.dropout": 0,
        "model.gradient_checkpointing": case.checkpointing, "model.lora": RANK, "model.lora_scale": SCALE,
        "model.lora_dropout": 0, "model.pooling": "cls", "loss.temperature": 0.2, "optim.lr": LR, "optim.warmup_ratio": 0,
        "engine.gradient_clipping": 0, "data.query_max_len": 24, "data.passage_max_len": 24,
        "data.query_instruction": "'find: '", "preflight": "false", "output_dir": output,
    } | changes  # fmt: skip
    if case.zero == 3:
        chosen |= {f"+engine.zero_optimization.stage3_{key}": 0 for key in ("param_persistence_threshold", "max_reuse_distance")}
    cfg = OmegaConf.to_container(config.compose([f"{key}={value}" for key, value in chosen.items()]), resolve=True)
    if chosen["optim"] == "sgd":  # the schedule falls from the peak on; the reference has one rate
        cfg["optim"]["_target_"] = f"{__name__}.steady_sgd"
    return cfg


def steady_sgd(named_parameters, **keys):
    from bgetrain.optim.sgd import sgd

    return sgd(named_parameters, **keys)[0], lambda step, total_steps: 1.0


def run(world, cfg: dict[str, Any], stop_after: int | None = None) -> dict[str, Any]:
    """Trains, or stops after a step as a Ctrl-C in it would; gradients and losses of the steps, what was announced."""
    import signal

    from deepspeed.utils import safe_get_full_grad

    from bgetrain import distributed, output
    from bgetrain.engine.deepspeed import Engine
    from bgetrain.logger import console
    from bgetrain.stage import contrastive
    from bgetrain.types import Interrupted

    found: dict[str, Any] = {"gradients": [], "logged": []}
    plain_step, plain_show = Engine.step, console.show

    def step(engine):
        whole = {name: safe_get_full_grad(each) for name, each in engine.trained().items()}
        found["gradients"].append({name.removeprefix("backbone."): each.clone() for name, each in whole.items()})
        if len(found["gradients"]) + 1 == stop_after:  # seen in the next step, which is then the last
            signal.raise_signal(signal.SIGINT)
        return plain_step(engine)

    Engine.step, console.show = step, lambda title, rows: found.update(rows)
    if world.rank == 0:
        output.claim(cfg)
    distributed.barrier(world)
    try:
        contrastive.run(cfg, world, lambda step, metrics: found["logged"].append(metrics))
        assert stop_after is None
    except Interrupted:
        assert stop_after is not None
    finally:
        Engine.step, console.show = plain_step, plain_show
    return found


def several(world, jobs: list[tuple]) -> list[dict]:
    return [run(world, *job) for job in jobs]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from conftest import sentence

    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    texts = [[sentence(100 * row + place, 6 if place == 0 else 20) for place in range(3)] for row in range(ROWS)]
    rows = [{"query": query, "pos": [positive], "neg": [negative]} for query, positive, negative in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return file


def texts_of(data: Path) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in data.read_text("utf8").splitlines()]
    return [f"find: {row['query']}" for row in rows], [text for row in rows for text in (row["pos"][0], row["neg"][0])]


@pytest.fixture(scope="module")
def reference(model_folder, data) -> dict[str, Any]:
    """SGD on the adapters that peft itself puts on a plain transformers model, all rows at once."""
    from peft import LoraConfig, get_peft_model
    from reference import embed
    from transformers import AutoModel, AutoTokenizer

    plain = AutoModel.from_pretrained(
        model_folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, add_pooling_layer=False
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    torch.manual_seed(SEED)
    model = get_peft_model(plain, LoraConfig(r=RANK, lora_alpha=int(SCALE * RANK), target_modules="all-linear"))
    adapters = {name.removeprefix("base_model.model."): each for name, each in model.named_parameters() if each.requires_grad}
    queries, passages = texts_of(data)
    losses, gradients = [], []
    for _ in range(STEPS):
        scores = embed(model, tokenizer, queries, "cls") @ embed(model, tokenizer, passages, "cls").T / 0.2
        loss = (torch.logsumexp(scores, dim=1) - scores[torch.arange(ROWS), torch.arange(ROWS) * 2]).mean()
        model.zero_grad()
        loss.backward()
        gradients.append({name: each.grad.clone() for name, each in adapters.items()})
        with torch.no_grad():
            for each in adapters.values():
                each -= LR * each.grad
        losses.append(loss.item())
    weights = {name: each.detach() for name, each in adapters.items()}
    total = sum(each.numel() for each in model.parameters())
    return {"losses": losses, "gradients": gradients, "weights": weights, "total": total}


def close(ours: dict, expected: dict, what: Any, *, relative: float, absolute: float) -> None:
    """Names agree, and values to `relative` of the largest of each tensor plus `absolute`."""
    assert ours.keys() == expected.keys(), what
    for name, value in expected.items():
        atol = relative * float(value.abs().max()) + absolute
        assert_close(ours[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{what} {n}: {m}")


def saved_adapters(output: Path) -> dict[str, torch.Tensor]:
    """`adapter/` under the names that the trained module has."""
    from safetensors.torch import load_file

    held = load_file(output / "adapter" / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): each for name, each in held.items()}


@pytest.mark.parametrize("size", [1, 2])
def test_adapters_train_as_peft_trains_them_in_one_process_at_every_zero_stage_and_step_mode(
    size, spawn, model_folder, data, reference, tmp_path
):
    from safetensors.torch import load_file
    from transformers import AutoModel

    cases = (
        [*CASES, *ROUNDED] if size == 2 else [*CASES[1::5], ROUNDED[0]]
    )  # one rank sends nothing: no stage differs but in code
    jobs = [(configure(case, model_folder, data, tmp_path / str(number)),) for number, case in enumerate(cases)]
    results = spawn(size, several, jobs, seconds=400)[0]
    base = AutoModel.from_pretrained(model_folder).state_dict()
    for number, (case, found) in enumerate(zip(cases, results, strict=True)):
        output = tmp_path / str(number)
        ours = saved_adapters(output)
        if case.precision == "fp32":
            assert [each["loss"] for each in found["logged"]] == pytest.approx(reference["losses"], rel=1e-5), case
            for step in range(STEPS):
                close(found["gradients"][step], reference["gradients"][step], (case, step), relative=1e-5, absolute=5e-8)
            close(ours, reference["weights"], case, relative=0, absolute=1e-6)
        counts = sum(each.numel() for each in ours.values()) / 1e6, reference["total"] / 1e6
        assert f"{counts[0]:.1f} of {counts[1]:.1f} M parameters trained" in found["model"]
        # not what bf16 rounded or ZeRO-3 split: the fp32 weights of the checkpoint, under its names, and the adapters'
        model = load_file(output / "model" / "model.safetensors")
        assert model.keys() == base.keys()
        moved = 0
        for name, weight in base.items():
            layer = name.removesuffix(".weight")
            if f"{layer}.lora_A.default.weight" in ours:
                product = ours[f"{layer}.lora_B.default.weight"] @ ours[f"{layer}.lora_A.default.weight"]
                assert float((model[name] - weight).abs().max()) > 1e-4
                assert_close(model[name], weight + SCALE * product, rtol=0, atol=1e-7)
                moved += 1
            else:
                assert torch.equal(model[name], weight), name
        assert moved == 12  # of two layers: query, key, value, and three dense


def test_model_folder_embeds_as_the_checkpoint_with_its_adapters_through_peft(spawn, model_folder, data, tmp_path):
    from peft import PeftModel
    from reference import embed
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    spawn(1, several, [(configure(Case(3), model_folder, data, tmp_path),)])
    queries, _ = texts_of(data)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    plain = AutoModel.from_pretrained(model_folder).eval()
    with torch.no_grad():
        before = embed(plain, tokenizer, queries, "cls")
        beside = embed(PeftModel.from_pretrained(plain, tmp_path / "adapter").eval(), tokenizer, queries, "cls")
        merged = embed(AutoModel.from_pretrained(tmp_path / "model").eval(), tokenizer, queries, "cls")
    assert float((before - beside).abs().max()) > 1e-3
    assert_close(merged, beside, rtol=0, atol=1e-6)
    sentences = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(queries, convert_to_tensor=True, prompt="")
    assert_close(sentences, beside, rtol=0, atol=1e-6)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["base_model_name_or_path"]) == (RANK, 8, str(model_folder))


def test_a_checkpoint_holds_the_adapters_alone_and_goes_on_from_there(spawn, model_folder, data, tmp_path):
    """AdamW with dropout of the adapters: bit for bit at the same ZeRO stage, to 1e-5 from ZeRO-1 to 3."""
    from safetensors.torch import load_file

    from bgetrain.engine import checkpoint

    changes = {"optim": "adamw", "model.lora_dropout": 0.2, "total_steps": 4, "optim.lr": 0.01}
    once, twice, other = (
        configure(Case(zero), model_folder, data, tmp_path / name, **changes)
        for zero, name in ((1, "once"), (1, "twice"), (3, "other"))
    )
    spawn(1, several, [(once,), (twice, 2)])
    shutil.copytree(tmp_path / "twice", tmp_path / "other")
    held = checkpoint.weights(tmp_path / "twice" / "checkpoints", 2)
    assert len(held) == 24
    assert all(".lora_A." in name or ".lora_B." in name for name in held)
    spawn(1, several, [(twice,), (other,)])
    files = [(tmp_path / name / "model" / "model.safetensors") for name in ("once", "twice", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    close(load_file(files[2]), load_file(files[0]), "ZeRO-3", relative=0, absolute=1e-5)
