"""What DeepSpeed's engines hold and send, beside what is foreseen of them."""

from bgetrain.forecast.passes import counts
from bgetrain.forecast.states import BUCKET, Plan, sent, states

WIDTH, VOCABULARY = 64, 400


def module():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, WIDTH), torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 8))


def bytes_of(tensors) -> int:
    seen = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors if each is not None}
    return sum(seen.values())


def held(world, cases: list[tuple[int, str]]) -> list[dict]:
    """Bytes of weights, optimizer and standing gradients after one step and one backward pass of another."""
    import torch

    from bgetrain.engine import deepspeed
    from bgetrain.engine.states import inner_optimizer

    found = []
    for zero, precision in cases:
        made = module()
        optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
        keys = {"stage": zero, "stage3_param_persistence_threshold": 0}
        engine = deepspeed.start(made, optimizer, precision=precision, world=world, gradient_clipping=1.0, zero_optimization=keys)
        ids = torch.arange(VOCABULARY).view(4, -1)
        engine.backward(engine.forward(ids).float().square().sum(), last=True)
        engine.step()
        engine.backward(engine.forward(ids).float().square().sum(), last=False)
        wrapped, inner = engine.core.optimizer, inner_optimizer(engine.core.optimizer)
        moments = [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value) and value.ndim]
        masters = [] if zero == 0 else [each for group in inner.param_groups for each in group["params"]]
        if zero == 3:
            masters = wrapped.fp32_partitioned_groups_flat
        weights = [each.ds_tensor if zero == 3 else each for each in made.parameters()]
        own = [each.grad for each in made.parameters()]
        flat = getattr(wrapped, "fp32_groups_gradients_flat", [])
        found.append({
            "weights": bytes_of([each.data for each in weights]),
            "optimizer": bytes_of([*moments, *masters]),
            "gradients": bytes_of([*own, *flat]) if zero < 2 else 0,
        })  # fmt: skip
    return found


def test_states_of_real_engines_are_foreseen(spawn):
    """On 2 ranks, ZeRO-0 to 3; within 4 %: DeepSpeed aligns flat buffers."""
    cases = [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
    size = counts(module())
    for case, found in zip(cases, spawn(2, held, cases)[0], strict=True):
        foreseen = states(size, Plan(*case, ranks=2, device="cpu", moments=2, bucket=BUCKET))
        assert found["weights"] <= foreseen.weights * 1.04, case
        assert found["weights"] >= foreseen.weights * 0.99, case
        assert abs(found["optimizer"] / foreseen.optimizer - 1) < 0.04, case
        if case[0] < 2:
            assert abs(found["gradients"] / foreseen.gradients - 1) < 0.04, case


def test_bytes_sent_are_those_measured_of_real_steps():
    """docs/how.md's table (tests/traffic.py): 423,296 parameters, 64 passages, width 128, fp32; within 0.5 %."""
    from bgetrain.forecast.passes import Counts

    size = Counts(423_296, 0, 0)
    measured = {
        (0, 2, 1, 1): 1_742_364, (0, 4, 1, 1): 2_613_546, (1, 2, 1, 1): 2_588_960, (1, 4, 1, 1): 3_883_440,
        (2, 2, 1, 1): 2_588_960, (2, 2, 4, 8): 7_668_512, (2, 4, 2, 4): 6_423_216,
        (3, 2, 1, 1): 1_742_376, (3, 4, 1, 1): 2_613_564, (3, 2, 4, 8): 13_594_664, (3, 4, 2, 4): 10_232_892,
    }  # fmt: skip
    for (zero, ranks, backwards, forwards), expected in measured.items():
        plan = Plan(zero, "fp32", ranks, "cpu", 2, BUCKET)
        total = sum(sent(size, plan, rows=64, width=128, backwards=backwards, forwards=forwards))
        assert abs(total / expected - 1) < 0.005, (zero, ranks, backwards)


def test_a_rank_of_fp16_at_zero_1_holds_what_deepspeeds_source_says():
    """n numbers on 48 ranks: 2 n of weights, 12 n / 48 of fp32 copy and moments, 4 n of sums; on a GPU 2 GB of a bucket."""
    from bgetrain.forecast.passes import Counts

    found = states(Counts(48_000_000, 0, 0), Plan(1, "fp16", 48, "cuda", 2, BUCKET))
    assert (found.weights, found.optimizer, found.gradients, found.buckets) == (96e6, 12e6, 192e6, 2e9)
