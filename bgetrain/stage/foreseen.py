"""What a stage's config will hold, compute and send on a device that is not at hand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple

from bgetrain.forecast import passes, states, steps
from bgetrain.forecast.passes import Encoder, Setting
from bgetrain.forecast.rehearsal import Pass
from bgetrain.forecast.states import Plan
from bgetrain.forecast.steps import Moments, Scores, Shape
from bgetrain.stage import shapes
from bgetrain.target import call
from bgetrain.types import Objective

Config = Mapping[str, Any]
GB = 10**9
TRIED = tuple(2**power for power in range(10, 18))  # chunk_tokens that are looked at
BETTER = 0.97  # of the time per step: less is not worth another setting; our choice
UPDATE = 40  # bytes that an update of AdamW moves for each parameter of this rank: fp32 weight, gradient, two moments, roots


class Choice(NamedTuple):
    """What one may choose without a change of the result.

    Attributes:
        zero_stage: 0 to 3.
        checkpointing: `model.gradient_checkpointing`.
        chunk_tokens: as the config has it.
        mode: single | cached | summed.
    """

    zero_stage: int
    checkpointing: bool
    chunk_tokens: int
    mode: str

    def keys(self) -> dict[str, Any]:
        """As one would type them."""
        found: dict[str, Any] = {"engine": f"zero{self.zero_stage}", "chunk_tokens": self.chunk_tokens}
        found["model.gradient_checkpointing"] = self.checkpointing
        return found if self.mode == "summed" else {**found, "step_mode": self.mode}


class Outcome(NamedTuple):
    """What a choice leads to.

    Attributes:
        choice: made.
        moments: bytes of a rank by moment and kind.
        flops: operations of a rank's step.
        sent: bytes of a rank's step.
        collectives: that send them.
        seconds: of a step, by what they are spent on.
    """

    choice: Choice
    moments: Moments
    flops: int
    sent: states.Sent
    collectives: Sequence[states.Collective]
    seconds: Mapping[str, float]

    @property
    def peak(self) -> float:
        return steps.peak(self.moments)[1]

    @property
    def time(self) -> float:
        return sum(self.seconds.values())


class Training:
    """A training stage on a device; modules and passes are made once.

    Args:
        cfg: of the stage.
        asked: of the plan.
        encoder: of the model.
    """

    def __init__(self, cfg: Config, asked: Config, encoder: Encoder) -> None:
        self.cfg, self.asked, self.encoder = cfg, asked, encoder
        self.device = asked["devices"][asked["gpu"]]
        self.kind = self.device.get("kind", "cuda")
        self.ranks = asked["gpus"]
        self.objective: Objective | None = call(cfg["loss"]) if cfg["stage"]["name"] == "retromae" else None
        self.whole = cfg["global_batch"]
        self.queries = -(-self.whole // self.ranks)  # of the fullest rank, whose time and memory are the step's
        self.modules: dict[Any, Any] = {}
        self.passed: dict[Any, Pass] = {}
        self.own_zero = cfg["engine"]["zero_optimization"].get("stage", 0)
        self.precision = shapes.precision(cfg, self.device, self.own_zero)

    def setting(self, checkpointing: bool) -> Setting:
        return Setting(self.kind, shapes.DTYPES[self.precision], checkpointing, self.asked["padding"])

    def module(self, checkpointing: bool) -> Any:
        """The trained module."""
        if checkpointing not in self.modules:
            setting = self.setting(checkpointing)
            if self.objective is not None:
                self.modules[checkpointing] = passes.auto_encoder(self.encoder, setting, self.objective)
            else:
                learnt = self.cfg["loss"]["learnable_temperature"]
                self.modules[checkpointing] = passes.bi_encoder(self.encoder, setting, learnable_temperature=learnt)
        return self.modules[checkpointing]

    def rehearsed(self, checkpointing: bool, shape: Shape) -> Pass:
        """The pass of a chunk, exactly."""
        if (checkpointing, shape) not in self.passed:
            module, setting = self.module(checkpointing), self.setting(checkpointing)
            if self.objective is not None:
                ratio = self.cfg["masking"]["encoder_ratio"]
                found = passes.rebuilt(module, setting, self.objective, *shape, ratio=ratio, specials=2)
            else:
                found = passes.encoded(module, setting, *shape, training=True)
            self.passed[checkpointing, shape] = found
        return self.passed[checkpointing, shape]

    def between(self, checkpointing: bool, shape: Shape) -> Pass:
        """The pass of a chunk from those of two sizes; never too little between them, for a peak is a largest of lines."""
        if (checkpointing, shape) in self.passed:
            return self.passed[checkpointing, shape]
        texts, length = shape
        low, high = (max(1, tokens // length) for tokens in (TRIED[0], TRIED[-1]))
        if high <= low or not low < texts < high:
            return self.rehearsed(checkpointing, shape)
        ends = [self.rehearsed(checkpointing, (each, length)) for each in (low, high)]
        weight = (texts - low) / (high - low)
        return Pass(*(round(one + weight * (other - one)) for one, other in zip(*ends, strict=True)))

    @cached_property
    def texts(self) -> dict[int, int]:
        """Length -> texts of the fullest rank."""
        query, passage = shapes.lengths(self.cfg, self.asked)
        if self.objective is not None:
            return {passage: self.queries}
        found = {passage: self.queries * self.cfg["group_size"]}
        return {**found, query: found.get(query, 0) + self.queries}

    @cached_property
    def scores(self) -> Scores:
        loss, width = self.cfg["loss"], self.encoder.config.hidden_size
        both = loss["directions"] != "forward"
        world = loss["negatives"] == "world"
        queries = self.cfg["global_batch"] if world else self.queries
        return Scores(
            texts=self.queries * (1 + self.cfg["group_size"]),
            queries=self.queries,
            pool=queries * (self.cfg["group_size"] + both) if loss["negatives"] != "group" else 0,
            gathered=world and self.ranks > 1,
            width=width,
            tile=loss["tile"],
            widths=sum(each for each in loss["matryoshka"] if each < width) // width + bool(loss["matryoshka"]),
            guide=width if self.cfg["guide_model"] else 0,
        )

    def plan(self, zero_stage: int) -> Plan:
        bucket = int(self.cfg["engine"]["zero_optimization"].get("reduce_bucket_size", states.BUCKET))
        return Plan(zero_stage, self.precision, self.ranks, self.kind, shapes.moments_of(self.cfg["optim"]), bucket)

    def outcome(self, choice: Choice, pass_of: Callable[[bool, Shape], Pass]) -> Outcome:
        """What a choice leads to, with passes from `rehearsed` or `between`."""
        work = steps.work(self.texts, choice.chunk_tokens)
        one = partial(pass_of, choice.checkpointing)
        size, plan = passes.counts(self.module(choice.checkpointing)), self.plan(choice.zero_stage)
        held = states.states(size, plan)
        rows, backwards, forwards = 0, work.passes, work.passes
        if self.objective is not None:
            masks = self.cfg["masking"]["decoder_masks"] if self.objective.query else 1
            found = steps.summed(held, work, one, lambda shape: passes.masks_bytes(*shape, masks, self.kind))
            flops = steps.flops(work, one, "summed")
        else:
            found = steps.contrastive(held, work, one, self.scores, choice.mode)
            flops = steps.flops(work, one, choice.mode) + self.scores.flops
            rows = self.scores.pool if self.scores.gathered else 0
            backwards, forwards = (1, 1) if choice.mode == "single" else (work.passes, 2 * work.passes)
        width = self.encoder.config.hidden_size
        exchanged = {"rows": rows, "width": width, "backwards": backwards, "forwards": forwards}
        moved = states.sent(size, plan, **exchanged)
        share = size.trained / (self.ranks if choice.zero_stage else 1)
        seconds = {
            "products": flops / (self.asked["mfu"] * 1e12 * self.device[self.precision]),
            "exchange": sum(moved) / (GB * shapes.link(self.asked, self.device)),
            "update": UPDATE * share / (GB * self.device["bandwidth"]),
        }
        return Outcome(choice, found, flops, moved, states.collectives(size, plan, **exchanged), seconds)

    @property
    def allowed(self) -> float:
        return float(self.asked["memory_share"] * GB * self.device["memory_gb"])

    def own(self) -> Outcome:
        """As the config has it; `step_mode=auto` is single where that fits."""
        checkpointing = bool(self.cfg["model"].get("gradient_checkpointing"))
        wanted = "summed" if self.objective is not None else self.cfg["step_mode"]
        modes = ("single", "cached") if wanted == "auto" else (wanted,)
        choices = [Choice(self.own_zero, checkpointing, self.cfg["chunk_tokens"], mode) for mode in modes]
        outcomes = [self.outcome(choice, self.rehearsed) for choice in choices]
        return next((each for each in outcomes if each.peak <= self.allowed), outcomes[-1])

    def others(self, zero: Sequence[int]) -> Iterator[Outcome]:
        """All that might be chosen instead, under these ZeRO stages."""
        longest, total = max(self.texts), sum(length * count for length, count in self.texts.items())
        tokens = [each for each in TRIED if longest <= each < 2 * total] or [self.cfg["chunk_tokens"]]
        modes = ["summed"] if self.objective is not None else ["single", "cached"]
        can = self.module(False)
        can = (can.lm if self.objective is not None else can.backbone).supports_gradient_checkpointing
        for stage, checkpointing, chunk, mode in product(zero, (False, True) if can else (False,), tokens, modes):
            yield self.outcome(Choice(stage, checkpointing, chunk, mode), self.between)

    def better(self, own: Outcome) -> Outcome | None:
        """The fastest that fits, where it is worth a change; of those alike the one with most like the config's.

        Another ZeRO stage is taken only where none fits under the config's: its many small exchanges cost what bytes do not say.
        """
        fitting: list[Outcome] = []
        for zero in dict.fromkeys((self.own_zero, 1, 2, 3)):
            if not fitting:
                fitting = [each for each in self.others([zero]) if each.peak <= self.allowed]
        if not fitting:
            return None
        least = min(each.time for each in fitting)

        def nearness(each: Outcome) -> tuple[int, int, int]:
            same = [one == other for one, other in zip(each.choice, own.choice, strict=True)]
            away = abs(each.choice.chunk_tokens.bit_length() - own.choice.chunk_tokens.bit_length())
            return sum(same), -away, -each.choice.zero_stage

        found = max((each for each in fitting if each.time <= least / BETTER), key=nearness)
        return found if own.peak > self.allowed or found.time < BETTER * own.time else None
