"""The values that cross layers, and the legend of shape letters.

Legend: W ranks, B queries on this rank, G passages per query, P passages of all ranks, N rows (texts)
of a chunk, L tokens of a row, T tokens of several rows laid end to end, D width, V vocabulary, M masked positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
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


class Row(NamedTuple):
    """One labelled query.

    Attributes:
        query: the text as it is, without instruction.
        positives: at least one relevant passage.
        negatives: passages known not to be relevant; may be empty.
        prompt: the instruction of this row; None: that of its source.
        positive_scores: a teacher's score of each positive; None: there are none.
        negative_scores: the same of each negative.
    """

    query: str
    positives: Sequence[str]
    negatives: Sequence[str]
    prompt: str | None
    positive_scores: Sequence[float] | None = None
    negative_scores: Sequence[float] | None = None


class Rows(Protocol):
    """Labelled queries on disk; memory does not grow with their number."""

    def __len__(self) -> int:
        """Rows in all."""

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Reads the rows at `indices`, in that order."""

    def where(self, index: int) -> str:
        """`FILE:LINE` of a row, for messages."""


class Texts(Protocol):
    """Texts on disk; memory does not grow with their number."""

    def __len__(self) -> int:
        """Texts in all."""

    def take(self, indices: Sequence[int]) -> list[str]:
        """Reads the texts at `indices`, in that order."""


class Fault(NamedTuple):
    """A row that cannot be used.

    Attributes:
        where: `FILE:LINE`.
        kind: one word for counts, e.g. "malformed".
        message: what is wrong and what would be valid, in one line that begins with `where`.
    """

    where: str
    kind: str
    message: str


class Found(NamedTuple):
    """A row that can be used, as `Source.scan` meets it.

    Attributes:
        where: `FILE:LINE`.
        row: a labelled query; of pre-training data, its text.
    """

    where: str
    row: Row | str


class Passages(Protocol):
    """A corpus on disk; memory does not grow with its size."""

    def __len__(self) -> int:
        """C, passages in all."""

    def take(self, places: Sequence[int]) -> list[str]:
        """The texts at `places`, each `(title + " " + text).strip()`."""

    def names(self, places: Sequence[int]) -> list[str]:
        """The names of the passages at `places`."""

    def find(self, names: Sequence[str]) -> np.ndarray:
        """int64 [n], the places of these names, -1 where there is none."""


class Retrieval(NamedTuple):
    """A corpus, queries and which passages are relevant to which.

    Attributes:
        passages: the corpus.
        query_ids: Q names.
        queries: Q texts, without instruction.
        prompts: Q instructions; None: that of the source.
        qrels: query name -> passage name -> relevance above 0.
        negatives: query name -> names of the passages that its row lists as negatives; queries without any are not in it.
        notes: what is to be told of the rows that it was made from, line by line.
    """

    passages: Passages
    query_ids: list[str]
    queries: list[str]
    prompts: list[str | None]
    qrels: dict[str, dict[str, int]]
    negatives: Mapping[str, Sequence[str]] = MappingProxyType({})
    notes: Sequence[str] = ()


class Part(NamedTuple):
    """One source of a mixture and how it is trained on; what is None is as the stage says.

    Attributes:
        name: in the mixture.
        source: the data.
        weight: how many of all rows are drawn from it, relative to the other parts; None: by its size or one of:
        epochs: passes over it in one epoch of the mixture.
        steps: steps that take it in one epoch of the mixture.
        global_batch: queries per optimizer step that takes it.
        group_size: G, passages per query.
        loss: keys of the loss that are different for it.
        symmetric: its passages are of the queries' kind: the instruction is put before them as well.
    """

    name: str
    source: "Source"
    weight: float | None = None
    epochs: float | None = None
    steps: int | None = None
    global_batch: int | None = None
    group_size: int | None = None
    loss: Mapping[str, Any] = MappingProxyType({})
    symmetric: bool = False


class Mix(NamedTuple):
    """Several sources in one run.

    Attributes:
        parts: the sources.
        batches: source: each global batch comes from one | mixed: from all.
        power: parts without numbers of their own are drawn in proportion to rows ** power; 1: by size, 0: equally.
    """

    parts: Sequence[Part]
    batches: str
    power: float


class Source(NamedTuple):
    """A set of data as a `data=` option opens it; what it has not is None.

    Attributes:
        name: for messages, e.g. "data=beir".
        texts: opens the texts for pre-training and for the vocabulary.
        rows: opens the labelled queries of the train split.
        retrieval: opens the corpus and queries of a split.
        files: what was read, for fingerprints.
        split: the split that evaluation and mining use.
        query_max_len: tokens of a query with its instruction and special tokens; longer ones are cut.
        passage_max_len: the same for passages and pre-training texts.
        query_instruction: put before every query.
        missing_negatives: what stands in for negatives where a row has none.
        scan: reads part i of n (0 <= i < n) of the rows as the files have them, in their order and without a cache; what
            cannot be used is a `Fault` among them and raises nothing. A row that a label makes a negative has no positive.
        mix: the sources that it is made of; None: it is one.
    """

    name: str
    texts: Callable[[], Texts] | None
    rows: Callable[[], Rows] | None
    retrieval: Callable[[str], Retrieval] | None
    files: Sequence[str]
    split: str
    query_max_len: int
    passage_max_len: int
    query_instruction: str
    missing_negatives: str
    scan: Callable[[int, int], Iterator[Found | Fault]] | None = None
    mix: Mix | None = None


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
