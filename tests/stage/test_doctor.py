"""Checks before the first step: on gloo ranks of which one is unlike the others, and `bgetrain stage=doctor` alone."""

from pathlib import Path
from typing import Any

import pytest


def configure(stage: str, zero: int, model: Path, data: Path, output: Path, *more: str) -> list[str]:
    chosen = [
        f"stage={stage}", "data=beir", f"data.path={data}", f"engine=zero{zero}", "precision=fp32", "log_every=1",
        "save_every=1000", "total_steps=3", "global_batch=7", "chunk_tokens=60", f"model.path={model}", "model.dropout=0.2",
        f"output_dir={output}", "data.passage_max_len=24", *more,
    ]  # fmt: skip
    if stage == "finetune":
        chosen += ["group_size=2", "data.query_max_len=20"]
    if zero == 3:
        keys = ("param_persistence_threshold", "max_reuse_distance")
        chosen += [f"+engine.zero_optimization.stage3_{key}=0" for key in keys]
    return chosen


def both_ways(world, model: Path, data: Path, folder: Path) -> list[tuple[str, list[Any], list[Any], int]]:
    """Losses and norms of runs with and without the checks, and how many random numbers a rank's generator was moved on."""
    from ranks import run_stage

    from bgetrain.stage import preflight

    calls = []
    plain = preflight.trial.run

    def counted(engine, forward):
        import torch

        before = torch.get_rng_state()
        found = plain(engine, forward)
        held = [name for name, each in engine.core.module.named_parameters() if each.grad is not None]
        calls.append((found.level, bool((before == torch.get_rng_state()).all()), held))
        return found

    preflight.trial.run = counted
    results = []
    for stage in ("finetune", "retromae"):
        for zero in range(4) if stage == "finetune" else (1, 3):
            runs: list[list[dict[str, float]]] = [[], []]
            for on, lines in zip(("true", "false"), runs, strict=True):
                calls.clear()
                run_stage(world, [*configure(stage, zero, model, data, folder / f"{stage}{zero}{on}"), f"preflight={on}"], lines)
                assert calls == ([("ok", True, [])] if on == "true" else [])
            told = [[(line["loss"], line["grad_norm"]) for line in lines] for lines in runs]
            results.append((f"{stage} zero{zero}", *told))
    return results


@pytest.mark.parametrize("size", [1, 2])
def test_losses_are_bit_for_bit_those_without_the_checks(size, spawn, model_folder, beir_folder, tmp_path):
    for found in spawn(size, both_ways, model_folder, beir_folder, tmp_path):
        assert len(found) == 6
        for name, checked, unchecked in found:
            assert len(checked) == 3, name
            assert checked == unchecked, name
