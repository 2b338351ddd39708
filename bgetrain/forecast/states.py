"""What DeepSpeed holds and sends for a model under each ZeRO stage, as version 0.19 does it.

n trained parameters, W ranks, b bytes of a number in the compute dtype. Files named are those of deepspeed/runtime. What stands
in fp32 and bf16 was held against counts of real engines on a CPU; fp16 and all that is a GPU's alone is read from source.
"""

from typing import NamedTuple

from bgetrain.forecast.passes import Counts

BUCKET = 500_000_000  # numbers; reduce_bucket_size, and engine.py's MEMORY_OPT_ALLREDUCE_SIZE
LIVE = 1_000_000_000  # parameters; stage3_max_live_parameters and max_reuse_distance
FP32 = 4


class Plan(NamedTuple):
    """How a model is trained.

    Attributes:
        zero_stage: 0 to 3.
        precision: fp32 | bf16 | fp16.
        ranks: W.
        device: cpu | cuda.
        moments: that the optimizer keeps of each parameter: 2 of AdamW.
        bucket: numbers that are reduced at once.
    """

    zero_stage: int
    precision: str
    ranks: int
    device: str
    moments: int
    bucket: int

    @property
    def element(self) -> int:
        """b."""
        return FP32 if self.precision == "fp32" else 2


class States(NamedTuple):
    """Bytes on a rank.

    Attributes:
        weights: in the compute dtype, frozen ones included.
        gathered: weights of other ranks that ZeRO-3 holds for a while.
        optimizer: fp32 copy and moments.
        standing: gradients that stand through all passes of a step.
        made: gradients that the first backward pass of a step makes, and that then stand.
        buckets: what is reduced, while passes go back.
        reduction: when gradients are reduced, besides all of the above.
        update: instead of gradients and buckets, while the optimizer goes through the parameters.
    """

    weights: int
    gathered: int
    optimizer: int
    standing: int
    made: int
    buckets: int
    reduction: int
    update: int

    @property
    def gradients(self) -> int:
        """All that a rank ever holds of them."""
        return self.standing + self.made


def states(size: Counts, plan: Plan) -> States:
    """Bytes of a model's weights, gradients and optimizer."""
    n, ranks, stage, element = size.trained, plan.ranks, plan.zero_stage, plan.element
    cuda, share, mixed = plan.device == "cuda", -(-n // ranks), plan.precision != "fp32"
    weights = element * (n + size.frozen)
    bucket = min(n, plan.bucket)
    # torch.optim.adamw: the root of the second moment; on a CPU also its quotient, parameter by parameter
    roots = FP32 if cuda else 2 * FP32
    if stage == 0:  # engine.py allreduce_bucket: a flat copy
        update = FP32 * n + (FP32 * n if cuda else 2 * FP32 * size.largest)
        return States(weights, 0, FP32 * plan.moments * n, 0, FP32 * n, 0, FP32 * bucket, update)
    optimizer = FP32 * (1 + plan.moments) * share
    taken = plan.bucket  # on a GPU whole; on a CPU pages come as they are used
    if stage == 1 and plan.precision == "bf16":  # bf16_optimizer.py: fp32 sums of all, beside the last backward pass's own
        update = FP32 * n + element * n + roots * share
        return States(weights, 0, optimizer, FP32 * n, element * n, 0, FP32 * bucket, update)
    if stage == 1:  # stage_1_and_2.py; in fp16 the sums are fp32 and the backward pass's own go at once
        standing, made = (FP32 * n, 0) if mixed else (0, FP32 * n)
        buckets = FP32 * taken if cuda else 0
        # gradients move into the bucket, and this rank's part into a buffer of its own
        reduction = FP32 * share if cuda or not mixed else FP32 * (bucket + share)
        # that buffer, a flat copy of it, and the roots
        return States(weights, 0, optimizer, standing, made, buckets, reduction, (2 * FP32 + roots) * share)
    if stage == 2:
        buckets = element * taken if cuda else element * bucket
        standing = FP32 * share  # of fp32 models: sums over passes; of others a flat fp32 partition
        reduction = FP32 * bucket if mixed else FP32 * (bucket + share)  # a copy for the exchange
        update = (FP32 * (1 if mixed else 2) + roots) * share
        return States(weights, 0, optimizer, standing, 0, buckets, reduction, update)
    own = element * -(-(n + size.frozen) // ranks)  # stage3.py; weights that come again within LIVE parameters are not let go of
    gathered = element * min(n + size.frozen, LIVE)
    buckets = element * (taken if cuda else bucket)
    return States(own, gathered, optimizer, FP32 * share, 0, buckets, FP32 * bucket if mixed else 0, (FP32 + roots) * share)


class Sent(NamedTuple):
    """Bytes that a rank must send in a step where collectives are rings.

    Attributes:
        embeddings: passages (and queries) gathered, and their gradients scattered.
        gradients: summed over ranks.
        weights: gathered: after the update, under ZeRO-3 for each pass.
    """

    embeddings: float
    gradients: float
    weights: float


class Collective(NamedTuple):
    """One kind of exchange in a step.

    Attributes:
        operation: all_gather | reduce_scatter | all_reduce.
        of: embeddings | gradients | weights.
        calls: of a step, each over a whole payload; DeepSpeed cuts those of gradients and weights into buckets.
        bytes: of a call's payload, over all ranks.
    """

    operation: str
    of: str
    calls: int
    bytes: int

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends in a step: a ring sends (W - 1) / W of a payload, and twice that to sum it everywhere."""
        return self.calls * self.bytes * (2 if self.operation == "all_reduce" else 1) * (ranks - 1) / ranks


def collectives(size: Counts, plan: Plan, *, rows: int, width: int, backwards: int, forwards: int) -> list[Collective]:
    """What `sent` is the sum of; the same arguments."""
    if plan.ranks == 1:
        return []
    back = "reduce_scatter" if plan.device == "cuda" else "all_reduce"  # gloo has none
    found = [Collective(name, "embeddings", 1, FP32 * rows * width) for name in ("all_gather", back) if rows]
    summed, gathered = FP32 * size.trained, plan.element * size.trained
    if plan.zero_stage == 3:
        # a single pass keeps the weights until it goes back; of several each gathers them anew, forward and back
        found.append(Collective("reduce_scatter", "gradients", backwards, summed))
        return [*found, Collective("all_gather", "weights", forwards + backwards if forwards > 1 else 1, gathered)]
    found.append(Collective("all_reduce", "gradients", backwards if plan.zero_stage == 2 else 1, summed))
    return [*found, Collective("all_gather", "weights", 1, gathered)] if plan.zero_stage else found


def sent(size: Counts, plan: Plan, *, rows: int, width: int, backwards: int, forwards: int) -> Sent:
    """What a step sends; payloads and counts as `tests/traffic.py` found them, docs/how.md.

    Args:
        size: of the model.
        plan: how it is trained.
        rows: embeddings of all ranks that are gathered; 0: none are.
        width: D.
        backwards: calls of the engine's backward in a step.
        forwards: of its forward.
    """
    found = collectives(size, plan, rows=rows, width=width, backwards=backwards, forwards=forwards)
    return Sent(*(sum(each.sent(plan.ranks) for each in found if each.of == name) for name in Sent._fields))
