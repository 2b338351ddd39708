"""fp16 without a GPU: deepspeed's own loss scaler and its path of skipped updates, on fp32 tensors with faked overflows."""

from pathlib import Path
from typing import NamedTuple

import pytest

TOTAL, HALF = 9, 4
OVERFLOWS = (2, 3, 6)


class Batch(NamedTuple):
    step: int
    epoch: float


def trained(world, zero: int, folder: Path, last: int, overflows: tuple[int, ...]) -> dict:
    """Trains on from what `folder` holds to step `last`; metrics of each step, weights, and states of scaler and AdamW."""
    import torch
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from bgetrain.engine import checkpoint, deepspeed, loop, scaler
    from bgetrain.engine.course import Course
    from bgetrain.engine.guard import Guard
    from bgetrain.engine.saver import Saver
    from bgetrain.engine.window import Counts
    from bgetrain.types import LossOutput

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    keys = {"zero_optimization": {"stage": zero, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0.0}
    engine = deepspeed.start(
        module, torch.optim.AdamW(module.parameters(), lr=0.01), precision="fp32", world=world, **keys
    )  # what follows is what deepspeed makes of precision=fp16, but for the dtype, which gloo's machine cannot
    engine.core.fp16_enabled = lambda: True
    engine.core.optimizer.loss_scaler = DynamicLossScaler(
        init_scale=2.0**6, scale_window=2, min_scale=1, delayed_shift=2, consecutive_hysteresis=False
    )
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    done = checkpoint.named(checkpoints, "latest")
    if done:
        state = checkpoint.load(checkpoints, done, world.rank, world.size)
        engine.load(state, lambda: engine.forward(torch.ones(1, 4)).sum())
    first = done + 1
    scales = [engine.core.optimizer.loss_scaler.cur_scale]

    def update(step, batch):
        generator = torch.Generator().manual_seed(100 * step + world.rank)
        loss = engine.forward(torch.randn(3, 4, generator=generator)).square().sum() / 6
        # one rank's gradient overflows: the update must be skipped on all
        engine.backward(loss * float("inf") if step in overflows and world.rank == 0 else loss, last=True)
        return LossOutput(loss.detach(), {}), Counts(3, 3, 3)

    logged = []

    def log(step, metrics):
        scales.append(engine.core.optimizer.loss_scaler.cur_scale)
        kept = {name: metrics[name] for name in ("loss", "lr", "skipped_steps", "grad_norm")}
        logged.append({"step": step, **kept})

    course = Course(
        engine, saver=Saver(checkpoints, world, keep=2, overlap=True, facts={}, warn=print, first_step=first),
        guard=Guard(0, folder / "nonfinite", None, world, print, {}), scoring=None, log=log, log_every=1, save_every=100,
        total_steps=last, world=world, progress=checkpoint.progress(checkpoints, done),
    )  # fmt: skip
    loop.fit(
        lambda step: Batch(step, 0.0), update, first_step=first,
        schedule=lambda step, total: 1 - step / 100, num_workers=0, course=course, world=world,
    )  # fmt: skip
    final = engine.state(last)
    return {"logged": logged, "weights": engine.weights(), "counters": final.counters, "scaler": scaler.read(engine.core),
            "scales": scales}  # fmt: skip


def resumed(world, folder: Path) -> dict[int, tuple[dict, dict, dict]]:
    found = {}
    for zero in (1, 2, 3):
        whole = trained(world, zero, folder / f"{zero}-once", TOTAL, OVERFLOWS)
        first = trained(world, zero, folder / f"{zero}-twice", HALF, OVERFLOWS)
        second = trained(world, zero, folder / f"{zero}-twice", TOTAL, OVERFLOWS)
        trained(world, zero, folder / f"{zero}-none", 2, (1, 2))  # nothing but skipped updates, then on
        late = trained(world, zero, folder / f"{zero}-none", 4, ())
        direct = trained(world, zero, folder / f"{zero}-direct", 4, (1, 2))
        found[zero] = (whole, first, second, late, direct)
    return found


def test_skipped_updates_are_counted_and_a_resumed_run_has_the_scale_the_schedule_and_the_counters(spawn, tmp_path):
    import torch

    for zero, (whole, first, second, late, direct) in spawn(2, resumed, tmp_path)[0].items():
        assert [each["skipped_steps"] for each in whole["logged"]] == [0, 1, 2, 2, 2, 3, 3, 3, 3], zero
        assert [each["lr"] for each in whole["logged"]] == pytest.approx([0.01 * (1 - step / 100) for step in range(1, 10)])
        assert [each["grad_norm"] == 0 for each in whole["logged"]] == [step in OVERFLOWS for step in range(1, 10)]
        assert whole["counters"]["step"] == TOTAL - len(OVERFLOWS)  # AdamW's correction of its bias counts updates done
        assert len(set(whole["scales"])) > 2  # it went down and up again
        assert first["scaler"] | {"skipped_steps": 2.0} == first["scaler"]
        assert [*first["logged"], *second["logged"]] == whole["logged"], zero
        assert second["scales"][0] == first["scales"][-1]
        assert (second["scales"][1:], second["scaler"]) == (whole["scales"][HALF + 1 :], whole["scaler"]), zero
        assert second["counters"] == whole["counters"]
        for other, expected in ((second, whole), (late, direct)):
            assert other["counters"] == expected["counters"], zero
            for name, weight in expected["weights"].items():
                assert torch.equal(other["weights"][name], weight), (zero, name)


def test_the_scale_is_read_and_written_in_deepspeeds_other_fp16_optimizer_too():
    from types import SimpleNamespace

    from bgetrain.engine import scaler

    def core(scale: float) -> SimpleNamespace:
        config = SimpleNamespace(cur_scale=scale, cur_iter=7, last_overflow_iter=3)  # LossScaleConfig has no hysteresis
        return SimpleNamespace(
            fp16_enabled=lambda: True, skipped_steps=int(scale), optimizer=SimpleNamespace(loss_scale_config=config)
        )

    state = scaler.read(core(8.0))
    assert state == {"cur_scale": 8.0, "cur_iter": 7.0, "last_overflow_iter": 3.0, "skipped_steps": 8.0}
    other = core(1.0)
    scaler.write(other, state)
    assert scaler.read(other) == state
