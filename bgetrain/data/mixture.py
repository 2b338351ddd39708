"""Several sources in one run, and what share of it each has."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bgetrain.data.flags import flagembedding_files
from bgetrain.data.joined import joined
from bgetrain.data.plan import Plan, Stream
from bgetrain.data.rows import jsonl
from bgetrain.sources import Mix, Part, Source, Texts
from bgetrain.target import call
from bgetrain.types import MissingNegatives, NonNegativeFloat, OnBadRow, PositiveFloat, PositiveInt

# keys of a part that say how it is trained on; the others are its source's
OWN = ("weight", "epochs", "steps", "global_batch", "group_size", "loss", "symmetric")


def mixture(
    sources: Mapping[str, Mapping[str, Any]],
    *,
    batches: Literal["source", "mixed"],
    power: NonNegativeFloat,
    query_max_len: PositiveInt | None,
    passage_max_len: PositiveInt | None,
    query_instruction: str | None,
    missing_negatives: MissingNegatives | None,
    on_bad_row: OnBadRow | None,
    split: str | None,
) -> Source:
    """Opens several sources as one.

    Args:
        sources: name -> keys of a source with its `_target_`, and those of `part`.
        batches: source: each global batch comes from one | mixed: from all.
        power: sources without weight, epochs or steps are drawn in proportion to rows ** power.
        query_max_len: of all sources (as are the keys below), written into their keys before this is called; None: of each.
        passage_max_len: the same.
        query_instruction: the same.
        missing_negatives: the same.
        on_bad_row: the same.
        split: the same.
    """
    parts = [part(name, **node) for name, node in sources.items()]
    return combined("data=mixture", Mix(parts, batches, power), split or "train", missing_negatives or "random")


def flagembedding(
    path: str,
    *,
    batches: Literal["source", "mixed"],
    power: NonNegativeFloat,
    on_bad_row: OnBadRow,
    query_max_len: PositiveInt,
    passage_max_len: PositiveInt,
    query_instruction: str,
    missing_negatives: MissingNegatives,
    split: str,
) -> Source:
    """Opens a folder in FlagEmbedding's layout as a mixture of its files.

    What FlagEmbedding reads from names and rows becomes keys of a part: `no_in_batch_neg` loss.negatives=group, type
    `only_1neg` group_size=2, `symmetric_sts` and `symmetric_clustering` symmetric=true (AbsDataset.py). It also halves the
    batch of symmetric types, which is left to `global_batch` of a source in data=mixture.

    Args:
        path: the folder, or one file.
        batches: as for `mixture`.
        power: as for `mixture`.
        others: as for `rows.jsonl`.
    """
    parts, root = [], Path(path).expanduser()
    for file in flagembedding_files(path):
        opened = jsonl(
            [file.path],
            columns={},
            labels=None,
            corpus=None,
            on_bad_row=on_bad_row,
            query_max_len=query_max_len,
            passage_max_len=passage_max_len,
            query_instruction=query_instruction,
            missing_negatives=missing_negatives,
            split=split,
        )
        parts.append(
            Part(
                str(Path(file.path).relative_to(root if root.is_dir() else root.parent)).partition(".")[0],
                opened,
                group_size=2 if file.type == "only_1neg" else None,
                loss={} if file.in_batch else {"negatives": "group"},
                symmetric=file.type in ("symmetric_sts", "symmetric_clustering"),
            )
        )
    return combined(f"data=flagembedding data.path={path}", Mix(parts, batches, power), split, missing_negatives)


def combined(name: str, mix: Mix, split: str, missing_negatives: str) -> Source:
    """A source of several."""
    opened = [each.source for each in mix.parts]
    instructions = {each.query_instruction for each in opened}
    has_texts, has_rows, has_passages = (
        all(getattr(each, kind) is not None for each in opened) for kind in ("texts", "rows", "corpus")
    )
    return Source(
        name,
        (lambda: ChainedTexts([each.texts() for each in opened if each.texts])) if has_texts else None,
        opened[0].rows if has_rows else None,  # parts are opened one by one; this says that they can be
        None,
        sorted({path for each in opened for path in each.files}),
        split,
        max(each.query_max_len for each in opened),
        max(each.passage_max_len for each in opened),
        instructions.pop() if len(instructions) == 1 else "",
        missing_negatives,
        mix=mix,
        corpus=(lambda: joined([each.corpus() for each in opened if each.corpus])) if has_passages else None,
    )


def part(
    name: str,
    *,
    weight: PositiveFloat | None = None,
    epochs: PositiveFloat | None = None,
    steps: PositiveInt | None = None,
    global_batch: PositiveInt | None = None,
    group_size: PositiveInt | None = None,
    loss: Mapping[str, Any] | None = None,
    symmetric: bool = False,
    **source: Any,
) -> Part:
    """One source of a mixture; see `sources.Part`.

    Raises:
        ValueError: the source cannot be opened; names the part.
    """
    try:
        opened = call(source)
    except ValueError as error:
        raise ValueError(f"data.sources.{name}: {error}") from error
    return Part(name, opened, weight, epochs, steps, global_batch, group_size, dict(loss or {}), symmetric)


class ChainedTexts:
    """The texts of several sources, one after the other."""

    def __init__(self, parts: Sequence[Texts]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def take(self, indices: Sequence[int]) -> list[str]:
        found: list[str] = [""] * len(indices)
        begin = 0
        for texts in self.parts:
            places = [place for place, index in enumerate(indices) if begin <= index < begin + len(texts)]
            for place, text in zip(places, texts.take([indices[place] - begin for place in places]), strict=True):
                found[place] = text
            begin += len(texts)
        return found


class Bucket(NamedTuple):
    """Rows of one part that make batches of one size; a part without length buckets is one feed.

    Attributes:
        part: index of the part in the mixture.
        rows: number of them.
        batch: rows of a global batch from this feed alone.
    """

    part: int
    rows: int
    batch: int


def plan(mix: Mix, feeds: Sequence[Bucket], seed: int) -> Plan:
    """The order of a mixture.

    Args:
        mix: the parts.
        feeds: of all parts; those of one part are drawn in proportion to their rows.
        seed: decides the order.

    Raises:
        ValueError: some parts have a weight, epochs or steps and others have not, or mixed batches of different sizes.
    """
    sizes = [sum(feed.rows for feed in feeds if feed.part == number) for number in range(len(mix.parts))]
    kind = kind_of(mix)
    if mix.batches == "mixed" and len({feed.batch for feed in feeds}) > 1:
        raise ValueError("data.batches=mixed makes one batch of all sources: global_batch must be the same for each of them")
    # the mean batch of a part, over its steps
    mean = [size / sum(feed.rows / feed.batch for feed in feeds if feed.part == number) for number, size in enumerate(sizes)]
    drawn = {
        "weight": lambda number, each: each.weight,
        "epochs": lambda number, each: each.epochs * sizes[number],
        "steps": lambda number, each: each.steps * mean[number],
        "power": lambda number, each: sizes[number] ** mix.power,
    }[kind]
    amounts = [float(drawn(number, each)) for number, each in enumerate(mix.parts)]
    total = sum(amounts)
    streams = [Stream(feed.rows, feed.batch, amounts[feed.part] / total * feed.rows / sizes[feed.part]) for feed in feeds]
    whole = total if kind in ("epochs", "steps") else float(sum(sizes))
    return Plan(streams, seed, mixed=mix.batches == "mixed", epoch_rows=whole)


def kind_of(mix: Mix) -> str:
    """What the parts' amounts are given by: weight | epochs | steps | power.

    Raises:
        ValueError: not all by the same.
    """
    given = {each.name: [kind for kind in ("weight", "epochs", "steps") if getattr(each, kind) is not None] for each in mix.parts}
    kinds = {tuple(found) for found in given.values()}
    if len(kinds) > 1 or len(next(iter(kinds))) > 1:
        words = ", ".join(f"{name} has {' and '.join(found) or 'none'}" for name, found in given.items())
        raise ValueError(f"data.sources: give each source one of weight, epochs and steps, or none of them any; {words}")
    return next(iter(next(iter(kinds))), "power")
