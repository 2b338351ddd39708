"""The collectives of a step: how many, and that they do not grow with the number of chunks where ZeRO allows it."""

from collections import Counter
from pathlib import Path
from typing import Any


def configure(model: Path, data: Path, output: Path, zero: int, mode: str, chunk_tokens: int) -> Any:
    from omegaconf import OmegaConf

    from bgetrain import config

    chosen = [
        "stage=finetune", "data=beir", f"data.path={data}", "optim=sgd", f"engine=zero{zero}", "precision=fp32", "log_every=1",
        "preflight=false",
        "total_steps=4", "global_batch=14", "group_size=1", f"chunk_tokens={chunk_tokens}", f"step_mode={mode}",
        f"model.path={model}", "model.dropout=0", f"output_dir={output}", "data.query_max_len=24", "data.passage_max_len=24",
    ]  # fmt: skip
    if zero == 3:
        chosen.append("+engine.zero_optimization.stage3_param_persistence_threshold=0")
    return OmegaConf.to_container(config.compose(chosen), resolve=True)


def traffic(world, cfgs: list[Any]) -> list[list[tuple]]:
    """Of each run's last step: (kind, dtype, numbers, bytes) of every collective."""
    from traffic import last_step

    from bgetrain import distributed, output
    from bgetrain.stage import contrastive

    sent = []
    for cfg in cfgs:
        if world.rank == 0:
            output.claim(cfg)
        distributed.barrier(world)
        with last_step(world.size) as found:
            contrastive.run(cfg, world, lambda step, metrics: None)
            sent.append([(each.kind, str(each.dtype), each.numbers, each.bytes) for each in found])
    return sent


def kinds(sent: list[tuple]) -> Counter:
    """How many collectives of each purpose."""
    found: Counter = Counter()
    for kind, dtype, numbers, _ in sent:
        purpose = "host" if dtype == "torch.int64" else "scalar" if numbers <= 2 else kind
        found[purpose] += 1
    return found


def test_collectives_do_not_grow_with_the_chunks_where_zero_allows_it(spawn, model_folder, beir_folder, tmp_path):
    """One gradient reduction a step at ZeRO-0 and 1; at ZeRO-2 and 3, which keep a share only, one for each backward pass.

    14 queries and 14 passages, all embeddings of width 32 on 2 ranks.
    """
    from safetensors.torch import load_file

    cases = [(zero, mode, tokens) for zero in range(4) for mode in ("single", "cached") for tokens in (4000, 60)]
    cfgs = [configure(model_folder, beir_folder, tmp_path / str(n), *case) for n, case in enumerate(cases)]
    sent = dict(zip(cases, spawn(2, traffic, cfgs)[0], strict=True))
    weights = load_file(tmp_path / "0" / "model" / "model.safetensors")
    size = sum(each.numel() for name, each in weights.items() if not name.startswith("pooler."))
    chunks = kinds(sent[2, "cached", 60])["allreduce"] - 1  # one is of the embeddings' gradient
    assert chunks > 2
    for zero, mode, tokens in cases:
        case, found = (zero, mode, tokens), sent[zero, mode, tokens]
        passes = chunks if zero >= 2 and mode == "cached" and tokens == 60 else 1
        # the choice of mode and number of chunks; the wish to stop, a loss that is not finite, a checkpoint being written
        assert [each[2] for each in found if each[:2] == ("allreduce", "torch.int64")] == [1, 3], case
        floats = [each for each in found if each[1] != "torch.int64" and each[2] > 2]
        of_embeddings = [each for each in floats if each[0] in ("allgather", "allreduce") and each[2] in (7 * 32, 14 * 32)]
        assert [each[0] for each in of_embeddings] == ["allgather", "allreduce"], case  # gloo has no reduce-scatter
        assert [each[3] for each in of_embeddings] == [7 * 32 * 4, 14 * 32 * 4], case
        reductions = [each for each in floats if each not in of_embeddings and each[0] in ("allreduce", "reduce_scatter")]
        assert len(reductions) == passes, case
        # each rank's share is rounded up to DeepSpeed's alignment
        assert all(size <= each[2] <= 1.1 * size for each in reductions), (case, size)
        gathers = [each for each in floats if each not in of_embeddings and each[0] == "allgather"]
        if zero < 3:
            # ZeRO-1 and 2 send the new weights, once for each of the two groups of parameters; with and without decay
            assert len(gathers) == (2 if zero else 0), case
            assert not zero or size / 2 <= sum(each[2] for each in gathers) <= 0.55 * size + 32, case
            assert kinds(found) == kinds(sent[zero, "single", 4000]) + Counter({"allreduce": passes - 1}), case


def test_gradients_of_a_bf16_model_are_added_up_over_ranks_in_fp32(spawn, model_folder, beir_folder, tmp_path):
    cfgs = [
        configure(model_folder, beir_folder, tmp_path / str(zero), zero, "cached", 4000) | {"precision": "bf16"}
        for zero in (1, 2, 3)
    ]
    for zero, found in zip((1, 2, 3), spawn(2, traffic, cfgs)[0], strict=True):
        reductions = {each[1] for each in found if each[0] in ("allreduce", "reduce_scatter", "reduce") and each[2] > 1000}
        assert reductions == {"torch.float32"}, zero


def accumulate(world, zero: int, chunks: int, accumulated_in: str) -> dict:
    """Gradients of 700 texts in bf16, as one chunk or as many."""
    import torch
    from deepspeed.utils import safe_get_full_grad

    from bgetrain.engine import deepspeed
    from bgetrain.engine.chunked import cached_step, single_step
    from bgetrain.types import LossOutput

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            # the words' vectors are not trained: torch adds the gradients of a word within a chunk in bf16 on a CPU
            self.register_buffer("words", torch.randn(7, 8))
            self.inner, self.out = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)

        def forward(self, seeds, *ids_and_masks):
            vectors = [self.words[ids].mean(1).bfloat16() for ids in ids_and_masks[::2]]
            return torch.cat([self.out(self.inner(each).tanh()).float() for each in vectors]), None

    torch.manual_seed(0)
    module = Encoder()
    keys = {"zero_optimization": {"stage": zero, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0.0}
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    types = {"grad_accum_dtype": accumulated_in}
    engine = deepspeed.start(module, optimizer, precision="bf16", world=world, data_types=types, **keys)
    ids = torch.randint(0, 7, (700, 3), generator=torch.Generator().manual_seed(1))
    direction = torch.tensor([0.5, 1.0, -0.7, 0.3])
    take = single_step if chunks == 1 else cached_step
    parts = [(part, None) for part in ids.chunk(chunks)]

    def loss(embeddings, shift):
        return LossOutput((embeddings @ direction).sum() / 700, {})

    take(engine, parts, torch.arange(700), list(range(chunks)), loss)
    gradients = {name: safe_get_full_grad(each).float().clone() for name, each in engine.trained().items()}
    engine.step()
    return gradients


def accumulations(world) -> list[tuple]:
    import torch

    def distance(ours: dict, other: dict) -> float:
        difference = torch.cat([(ours[name] - other[name]).flatten() for name in ours]).norm()
        return float(difference / torch.cat([each.flatten() for each in other.values()]).norm())

    found = []
    for zero in (1, 2, 3):
        one = accumulate(world, zero, 1, "fp32")
        found.append(tuple(distance(accumulate(world, zero, 700, dtype), one) for dtype in ("fp32", "bf16")))
    return found


def test_in_bf16_gradients_of_700_chunks_are_those_of_one_within_a_hundredth_because_they_add_up_in_fp32(spawn):
    """Norm of the difference over the norm; at ZeRO 1, 2 and 3."""
    for zero, (exact, rounded) in zip((1, 2, 3), spawn(1, accumulations)[0], strict=True):
        print(f"ZeRO-{zero}: {exact:.5f} in fp32, {rounded:.5f} in bf16")
        assert exact < 0.01, zero
        assert rounded > 0.05, zero
