"""Updates that are not finite, through DeepSpeed: nothing is updated by them, and nothing of them is left."""

from pathlib import Path
from typing import Any

import pytest

POISONED, TOTAL = 3, 5


def cases() -> list[tuple[int, str, str]]:
    return [(zero, mode, kind) for zero in range(4) for mode in ("single", "cached") for kind in ("loss", "gradient")]


def overrides(model: Path, data: Path, output: Path, zero: int, mode: str) -> list[str]:
    small = [f"+engine.zero_optimization.stage3_param_persistence_threshold={0}"] if zero == 3 else []
    return [
        "stage=finetune", "data=beir", f"data.path={data}", f"model.path={model}", "model.dropout=0", "precision=fp32",
        f"engine=zero{zero}", *small, "optim.lr=0.001", "global_batch=7", "group_size=1", "chunk_tokens=60", f"step_mode={mode}",
        f"total_steps={TOTAL}", "log_every=1", "save_every=100", "on_nonfinite=skip(1)", "loss.temperature=0.1",
        "data.query_max_len=24", "data.passage_max_len=24", "preflight=false", f"output_dir={output}",
    ]  # fmt: skip


def run(world, asked: list[str], kind: str) -> tuple[bool, list[dict[str, float]]]:
    """Poisons a step on rank 1; whether weights, moments and counters are the same after it, and the lines of the log."""
    import torch
    from ranks import run_stage

    from bgetrain.engine import deepspeed
    from bgetrain.stage import contrastive

    step_now, same = [0], []
    plain_update, plain_step, plain_backward = (
        contrastive.update_once, deepspeed.Engine.step, deepspeed.Engine.backward,
    )  # fmt: skip

    def update(*arguments: Any) -> Any:
        step_now[0] = arguments[-2]
        output, counts = plain_update(*arguments)
        if step_now[0] == POISONED and kind == "loss" and world.rank == 1:
            output = output._replace(loss=output.loss * torch.nan)
        return output, counts

    def backward(self, loss, *, last):
        if step_now[0] == POISONED and world.rank == 1:  # an infinite loss of a finite gradient, or a gradient that overflows
            loss = loss + torch.inf if kind == "loss" else Overflowing.apply(loss)
        plain_backward(self, loss, last=last)

    class Overflowing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.inf

    def step(self):
        if step_now[0] != POISONED:
            return plain_step(self)
        before = self.state(POISONED)
        norm = plain_step(self)
        after = self.state(POISONED)
        equal = all(torch.equal(each, after.tensors[name]) for name, each in before.tensors.items())
        same.append(equal and before.counters == after.counters and norm not in (0.0,))
        return norm

    contrastive.update_once, deepspeed.Engine.step, deepspeed.Engine.backward = update, step, backward
    lines: list[dict[str, float]] = []
    try:
        run_stage(world, asked, lines)
    finally:
        contrastive.update_once, deepspeed.Engine.step, deepspeed.Engine.backward = plain_update, plain_step, plain_backward
    return same == [True], lines


def several(world, jobs: list[tuple[list[str], str]]) -> list[Any]:
    return [run(world, *job) for job in jobs]


def test_an_update_that_is_not_finite_changes_nothing_and_leaves_no_gradient(spawn, model_folder, beir_folder, tmp_path):
    """Losses of the steps after it agree over ZeRO stages and modes to 1e-5: a gradient that stayed would be in them."""
    jobs = [
        (overrides(model_folder, beir_folder, tmp_path / f"{zero}-{mode}-{kind}", zero, mode), kind)
        for zero, mode, kind in cases()
    ]
    expected = None
    for case, (same, lines) in zip(cases(), spawn(2, several, jobs)[0], strict=True):
        assert same, case
        assert [line["nonfinite_steps"] for line in lines] == [0, 0, 1, 1, 1], case
        losses = [lines[place]["loss"] for place in (0, 1, 3, 4)]
        expected = expected or losses
        assert losses == pytest.approx(expected, rel=1e-5), case
