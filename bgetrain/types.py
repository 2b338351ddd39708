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
TaskType = Literal[
    "Retrieval", "STS", "PairClassification", "Classification", "Reranking", "Clustering", "Summarization",
    "BitextMining", "MultilabelClassification", "InstructionRetrieval", "InstructionReranking",
]  # fmt: skip
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


class WordChunk(NamedTuple):
    """Texts padded together, with the word of each token.

    Attributes:
        ids: int64 [N, L], clean.
        mask: bool [N, L], True on real tokens; None where no token is padding.
        words: int64 [N, L], the word that each token belongs to, counted from 0 in each text; -1 on special tokens and padding.
        rows: int64 [N], positions in the global batch, which seed each text's masks.
    """

    ids: Tensor
    mask: Tensor | None
    words: Tensor
    rows: Tensor


class Predictions(NamedTuple):
    """States that a vocabulary layer turns into predictions, and the tokens that they should become.

    Attributes:
        encoder: [M, D], at the tokens that the encoder predicts.
        encoder_targets: int64 [M].
        decoder: [K, D], at the tokens that the decoder reconstructs; K = 0 where there is no decoder.
        decoder_targets: int64 [K].
        words: [T, D], the encoder's at all tokens but each text's first and padding; None where no bag of words is asked for.
        word_texts: int64 [T], 0 <= text < N, ascending: the text of each row of `words`; None likewise.
        bag: int64 [K'], the texts' clean tokens without special tokens; None likewise.
        bag_texts: int64 [K'], 0 <= text < N, ascending: the text of each token of `bag`; None likewise.
        num_texts: N.
    """

    encoder: Tensor
    encoder_targets: Tensor
    decoder: Tensor
    decoder_targets: Tensor
    words: Tensor | None
    word_texts: Tensor | None
    bag: Tensor | None
    bag_texts: Tensor | None
    num_texts: int


class Totals(NamedTuple):
    """What the losses of masked auto-encoding are averaged over: counts of the step's global batch, on all ranks.

    Attributes:
        encoder: tokens that the encoder predicts, >= 0.
        decoder: tokens that the decoder reconstructs, >= 0.
        texts: > 0.
    """

    encoder: int
    decoder: int
    texts: int


class ScoreWords(Protocol):
    """A loss over the words of a vocabulary, in memory that does not grow with tokens times words."""

    def __call__(
        self, predictions: Predictions, weight: Tensor, bias: Tensor | None, *, totals: Totals
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores predictions.

        Args:
            predictions: of a chunk.
            weight: [V, D] of the vocabulary layer.
            bias: [V]; None where the layer has none.
            totals: of the step.

        Returns:
            Loss and metrics in the form of `LossOutput`.
        """


class Objective(NamedTuple):
    """What a masked auto-encoder is trained for.

    Attributes:
        query: how the decoder asks for a token, "position" or "embedding" (`model.retromae` says what they are); None: there
            is no decoder, the encoder alone predicts.
        bag_of_words: the loss reads `Predictions.words` and `bag`.
        score: the loss.
    """

    query: Literal["position", "embedding"] | None
    bag_of_words: bool
    score: ScoreWords


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
    """What a checkpoint holds of the engine; data order, masks and learning rate follow from (config, seed, step).

    Attributes:
        step: optimizer steps done.
        tensors: fp32, whole: `NAME` a parameter, `NAME/STATE` what the optimizer keeps of it. On the way to disk those of
            this rank, from it those of all.
        counters: optimizer scalars such as AdamW's step count, name -> value.
        scaler: fp16's loss scale, its counters, and the updates skipped; None in another precision.
        random: uint8 states of this rank's generators, `cpu` and, on a GPU, `cuda`; none where ranks are not as many as then.
    """

    step: int
    tensors: dict[str, Tensor]
    counters: dict[str, float]
    scaler: dict[str, float] | None
    random: dict[str, Tensor]


class Log(Protocol):
    """Where a stage's figures go; called on rank 0 only. One with `artifact(path)` keeps files of a finished run, too."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records figures of one step; names are path-like, units SI."""

    def close(self) -> None:
        """Flushes and releases what `start` opened."""


class Interrupted(Exception):  # noqa: N818 (no error: the user's wish)
    """The run was asked to stop, and what it had is saved."""
