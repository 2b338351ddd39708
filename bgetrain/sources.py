"""Data as it crosses layers before it is tokens: rows, texts, corpora, and where they come from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np


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


class Corpus(NamedTuple):
    """Passages to be searched, without any query.

    Attributes:
        passages: the texts.
        where: places -> of each passage `FILE:LINE` where that is known, else its name.
        key: other passages have another one, also those of the same files in another state.
    """

    passages: Texts
    where: Callable[[Sequence[int]], list[str]]
    key: str


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


class Benchmark(NamedTuple):
    """Tasks of MTEB (Muennighoff et al. 2023, arXiv:2210.07316), and which of them take an instruction.

    Attributes:
        tasks: names of tasks and of benchmarks; empty: all of `types`.
        types: of tasks, e.g. Retrieval; empty: all.
        languages: ISO 639-3 codes, e.g. eng or cmn-Hans; subsets in others are left out; empty: all.
        folder: has each data set at FOLDER/ORG/NAME, as the hub has it; None: they come from the hub or its cache.
        instruction_for: types, or names with wildcards, of the tasks whose queries get the instruction.
        no_instruction_for: the same of those that get none though they are of such a type.
    """

    tasks: Sequence[str]
    types: Sequence[str]
    languages: Sequence[str]
    folder: str | None
    instruction_for: Sequence[str]
    no_instruction_for: Sequence[str]


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
        benchmark: tasks that a model is evaluated on, each with data and figures of its own.
        corpus: opens the passages alone, of all splits.
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
    benchmark: Benchmark | None = None
    corpus: Callable[[], Corpus] | None = None
