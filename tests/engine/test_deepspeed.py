"""What the DeepSpeed engine accepts, how it adds up, and what it needs on the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def refusals(world) -> dict[str, str]:
    import torch

    from bgetrain.engine import deepspeed

    def refused(precision="fp32", zero_optimization=None, **others):
        module = torch.nn.Linear(2, 2)
        zero = {"stage": 1} if zero_optimization is None else zero_optimization
        keys = {"precision": precision, "world": world, "gradient_clipping": 1.0, "zero_optimization": zero, **others}
        try:
            deepspeed.start(module, torch.optim.SGD(module.parameters(), lr=0.1), **keys)
        except ValueError as error:
            return str(error)
        return "accepted"

    return {
        "misspelt": refused(wall_clock_breakdwn=True),
        "batch": refused(train_batch_size=7),
        "inside": refused(zero_optimization={"stage": 1, "overlap_com": True}),
        "stage": refused(zero_optimization={"stage": 7}),
        "fp16": refused("fp16"),
        "bf16 zero0": refused("bf16", {"stage": 0}),
        "known": refused(wall_clock_breakdown=False),
    }


def test_keys_that_deepspeed_does_not_know_and_combinations_it_cannot_run_are_refused_in_one_line(spawn):
    (said,) = spawn(1, refusals)
    assert "engine.wall_clock_breakdwn is not a key" in said["misspelt"]
    assert said["misspelt"].endswith("did you mean wall_clock_breakdown?")
    assert "engine.train_batch_size is not a key" in said["batch"]
    assert "engine.zero_optimization.overlap_com" in said["inside"]
    assert "engine.zero_optimization.stage" in said["stage"]
    assert said["fp16"] == "precision=fp16 does not run on a CPU: use precision=fp32 or bf16"
    assert said["bf16 zero0"].startswith("precision=bf16 needs engine=zero1 or above")
    assert said["known"] == "accepted"
    assert not any("\n" in each for each in said.values())


def halves(world, zero: int) -> tuple[float, float, float]:
    import torch
    from deepspeed.utils import safe_get_full_grad

    from bgetrain.engine import deepspeed

    module = torch.nn.Linear(1, 1, bias=False)
    keys = {"zero_optimization": {"stage": zero, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0.0}
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    engine = deepspeed.start(module, optimizer, precision="bf16", world=world, **keys)
    before = engine.weights()["weight"].item()
    for number in range(600):
        # sums of bf16 stop at 128: 128.5 is not a number of bf16
        engine.backward(engine.forward(torch.full((1, 1), 0.5, dtype=torch.bfloat16)).float().sum(), last=number == 599)
    gradient = float(safe_get_full_grad(engine.trained()["weight"]))
    norm = engine.step()
    return gradient, norm, before - engine.weights()["weight"].item()


def all_halves(world) -> list:
    return [halves(world, zero) for zero in (1, 2, 3)]


def test_bf16_gradients_of_many_chunks_add_up_in_fp32(spawn):
    for zero, (gradient, norm, moved) in zip((1, 2, 3), spawn(1, all_halves)[0], strict=True):
        assert gradient == 300.0, zero
        assert norm == pytest.approx(300.0, rel=1e-6), zero
        assert moved == pytest.approx(300.0, rel=1e-5), zero


STEP = """
import sys
import torch
from bgetrain import distributed
from bgetrain.cluster.local import on_ranks
from bgetrain.engine import deepspeed

def run(place):
    world = distributed.start(*place[:5])
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    engine = deepspeed.start(
        module, optimizer, precision="fp32", world=world, gradient_clipping=0.0, zero_optimization={"stage": 2}
    )
    before = engine.weights()["weight"]
    engine.backward(engine.forward(torch.ones(3, 2)).sum(), last=True)
    assert abs(engine.step() - 27 ** 0.5) < 1e-5
    torch.testing.assert_close(engine.weights()["weight"], before - 0.3)
    print("done")
    return 0

sys.modules["mpi4py"] = None  # an import of it fails
sys.exit(on_ranks(run, [], 1, timeout_minutes=1, heartbeat_seconds=60, port=None))
"""


@pytest.mark.parametrize("path", ["bare", "whole"])
def test_a_step_runs_without_compiler_ninja_mpi4py_and_launcher_and_compiles_nothing_where_they_are(path, tmp_path):
    """The bare PATH holds the interpreter alone; torch's cache of extensions is empty before and after."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    kept = {name: os.environ[name] for name in ("HOME", "OMP_NUM_THREADS", "PYTHONPATH") if name in os.environ}
    environment = kept | {"PATH": str(tmp_path / "bin"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    if path == "whole":
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-c", STEP], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "done"
    assert not (tmp_path / "extensions").exists()
