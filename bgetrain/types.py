"""The values that cross layers, and the legend of shape letters.

Legend: W ranks, B queries on this rank, G passages per query, P passages of all ranks, N rows (texts)
of a chunk, L tokens of a row, T tokens of several rows laid end to end, D width, V vocabulary, M masked positions.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, device

# Ranges that a keyword argument of a configurable function accepts. `config.py` reads these names from the
# signature, without importing the module, and refuses a value outside the range before anything starts.
PositiveInt = int  # > 0
NonNegativeInt = int  # >= 0
PositiveFloat = float  # > 0
NonNegativeFloat = float  # >= 0
Ratio = float  # 0 <= x <= 1
Negatives = Literal["group", "rank", "world"]
# Where a column map finds one of our columns: a column, a path such as "answers.text", a place in lines that are lists.
Column = str | int | list[str | int]
OnBadRow = Literal["stop", "skip"]
MissingNegatives = Literal["random", "refuse"]
Pooling = Literal["cls", "mean", "last"]
Directions = Literal["forward", "both", "joint"]
Teacher = Literal["none", "group", "batch"]


class World(NamedTuple):
    """This process among all ranks.

    Attributes:
        rank: 0 <= rank < size.
        size: W, ranks in all.
        local_rank: this process among those of its machine.
        local_size: ranks on this machine.
        device: where this rank computes.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: device


class Ragged(NamedTuple):
    """Texts as token ids laid end to end; nothing is padded.

    Attributes:
        ids: int64 [T], T = lengths.sum().
        lengths: int64 [N], tokens of each text, special tokens included.
    """

    ids: Tensor
    lengths: Tensor


class Chunk(NamedTuple):
    """Texts padded together for one forward pass.

    Attributes:
        ids: int64 [N, L].
        mask: bool [N, L], True on real tokens; None where no token is padding.
    """

    ids: Tensor
    mask: Tensor | None


class TextKeys(NamedTuple):
    """Hashes of 64 bits by which equal texts are found; on the host.

    Attributes:
        query: int64 [B], of the queries without their instruction.
        passage: int64 [B * G].
        positives: of all positives that each of the B rows lists; `lengths` says how many.
    """

    query: Tensor
    passage: Tensor
    positives: Ragged


class GroupBatch(NamedTuple):
    """This rank's share of one contrastive step.

    Attributes:
        query: B texts.
        passage: B * G texts; number b * G is the positive of query b, the next G - 1 its negatives.
        keys: of these texts; None: nobody asked for them.
        teacher: fp32 [B, G], a teacher's score of each passage for its query; None: nobody asked for them.
        guide: queries and passages as the guide model's tokenizer has them; None: there is no guide.
        sources: int64 [B], the source of the data that each query comes from.
        rows: int64 [B], the row of that source.
        size: queries of the global batch, on all ranks.
        source: the source of all queries; None: they come from several.
        epoch: passes over the data completed when the step began.
    """

    query: Ragged
    passage: Ragged
    keys: TextKeys | None
    teacher: Tensor | None
    guide: tuple[Ragged, Ragged] | None
    sources: Tensor
    rows: Tensor
    size: int
    source: int | None
    epoch: float


class Contrast(NamedTuple):
    """What a contrastive loss compares, on this rank.

    Attributes:
        query: fp32 [B, D], unit rows.
        passage: fp32 [B * G, D], unit rows; row b * G is the positive of query b.
        keys: of their texts; None where equal texts are not looked for.
        teacher: fp32 [B, G], a teacher's scores; None without a teacher.
        guide: a guide's embeddings of the same texts, fp32 [B, D'] and [B * G, D'], unit rows; None without a guide.
        shift: fp32 [1], learnt: the scores' factor is exp(shift) / temperature; None: 1 / temperature.
    """

    query: Tensor
    passage: Tensor
    keys: TextKeys | None = None
    teacher: Tensor | None = None
    guide: tuple[Tensor, Tensor] | None = None
    shift: Tensor | None = None


class TextBatch(NamedTuple):
    """This rank's share of one masked auto-encoding step; all token tensors are laid end to end.

    Attributes:
        text: N texts, clean.
        words: int64 [T], the word that each token belongs to, counted from 0 in each text; -1 on special tokens.
        rows: int64 [N], positions in the global batch, which seed each text's masks.
        epoch: passes over the data completed when the step began.
    """

    text: Ragged
    words: Tensor
    rows: Tensor
    epoch: float


class MaskedChunk(NamedTuple):
    """Texts padded together with the masks of RetroMAE (Xiao et al. 2022, arXiv:2205.12035).

    Attributes:
        clean: the texts as they are.
        encoder_ids: int64 [N, L], the texts after 80/10/10 replacement.
        encoder_labels: int64 [N, L], the clean token where the encoder predicts, else -100.
        decoder_visible: bool [N, L, L], True where row i may attend to column j; column 0 is the embedding.
        decoder_labels: int64 [N, L], the clean token on every real token but the specials, else -100.
    """

    clean: Chunk
    encoder_ids: Tensor
    encoder_labels: Tensor
    decoder_visible: Tensor
    decoder_labels: Tensor


class LossOutput(NamedTuple):
    """A loss in the form that every engine expects.

    Attributes:
        loss: fp32 scalar, the sum over this rank's rows divided by the count of all ranks' rows, so that
            adding losses (or gradients) of all ranks gives the mean over the global batch.
        metrics: fp32 scalars in the same form: their sum over ranks is the figure of the global batch.
        faults: bool or uint8 [B], above 0 for the queries to blame where the loss is not finite, the higher the nearer
            to the cause: those with the highest of all ranks are named. None: the loss cannot tell.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    faults: Tensor | None = None


class TrainState(NamedTuple):
    """What a checkpoint holds; everything else follows from (config, seed, step).

    Attributes:
        step: optimizer steps done.
        parameters: name -> fp32 tensor, whole.
        moments: name -> {state name -> fp32 tensor, whole}.
        counters: optimizer scalars such as AdamW's step count, name -> value.
        scaler: fp16's loss scale, its counters, and the updates skipped; None in another precision.
    """

    step: int
    parameters: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    counters: dict[str, float]
    scaler: dict[str, float] | None = None


class Log(Protocol):
    """Where a stage's figures go; called on rank 0 only."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records figures of one step; names are path-like, units SI."""

    def close(self) -> None:
        """Flushes and releases what `start` opened."""


class Interrupted(Exception):  # noqa: N818 (no error: the user's wish)
    """The run was asked to stop, and what it had is saved."""
