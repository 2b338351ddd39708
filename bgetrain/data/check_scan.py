"""One worker's part of a check: its rows read once, block by block."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bgetrain.data import check_near, check_rows
from bgetrain.data.check_duplicates import Spill
from bgetrain.data.check_leakage import Known
from bgetrain.data.check_places import LINES, Places
from bgetrain.data.check_tally import Tally
from bgetrain.sources import Fault, Found, Row, Source

BLOCK = 256  # rows tokenised and looked up at a time
SEEN_BY_GUESS = 2000  # characters of a text whose language is guessed


class Job(NamedTuple):
    """What every worker is told.

    Attributes:
        open: opens the source; called in each worker.
        tokenizer: loads a fast tokenizer of transformers; None: lengths are estimated.
        folder: receives the digests of rows.
        evaluation: holds the texts of evaluation sets; None: there are none.
        seed: of the samples.
        near_rows: most texts of a sort that are compared with each other; 0: none.
        language_rows: rows whose language is guessed.
        places: kept of each kind.
    """

    open: Callable[[], Source]
    tokenizer: Callable[[], Any] | None
    folder: Path
    evaluation: Path | None
    seed: int
    near_rows: int
    language_rows: int
    places: int


class Texts(NamedTuple):
    """A row as its texts, normalised."""

    query: str | None
    positives: list[str]
    negatives: list[str]


def found_in(source: Source, part: int, parts: int) -> Iterator[Found | Fault]:
    """Part `part` of `parts` of a source's rows, of one that cannot be scanned those that it opens."""
    if source.scan:
        yield from source.scan(part, parts)
    elif source.rows:
        rows = source.rows()
        for start in range(0, len(rows), BLOCK * parts):
            numbers = range(start + part, min(start + BLOCK * parts, len(rows)), parts)
            for number, row in zip(numbers, rows.take(numbers), strict=True):
                yield Found(rows.where(number), row)


def scan(job: Job, part: int, parts: int, advance: Callable[[int], None]) -> Tally:
    """Reads part `part` of `parts` of the rows and counts what is found in them.

    Args:
        job: what to do.
        part: 0 <= part < parts.
        parts: into which the rows are divided.
        advance: told how many more rows are done.
    """
    source = job.open()
    places = Places([str(file) for file in source.files])
    limits = {"query": source.query_max_len, "passage": source.passage_max_len, "text": source.passage_max_len}
    worker = Worker(job, source, Tally(places, limits, job.places, job.language_rows), Spill(job.folder, part))
    block: list[tuple[int, Row | str]] = []
    for found in found_in(source, part, parts):
        place = places.pack(found.where)
        worker.tally.rows[place >> LINES] += 1
        if isinstance(found, Fault):
            worker.tally.add(found.kind, place, found.message.removeprefix(found.where).lstrip(": "))
        else:
            block.append((place, found.row))
        if len(block) == BLOCK:
            worker.read(block)
            block = []
        advance(1)
    worker.read(block)
    return worker.done()


class Worker:
    """What a worker holds while it reads.

    Args:
        job: what to do.
        source: what is read.
        tally: receives the counts.
        spill: receives the digests of rows.
    """

    def __init__(self, job: Job, source: Source, tally: Tally, spill: Spill) -> None:
        self.job, self.source, self.tally, self.spill = job, source, tally, spill
        self.count = counter(job.tokenizer() if job.tokenizer else None)
        self.known = job.evaluation and (Known.load(job.evaluation, "queries"), Known.load(job.evaluation, "passages"))
        self.samples = {name: check_near.Sample(job.near_rows) for name in ("query", "passage", "text")}

    def read(self, block: Sequence[tuple[int, Row | str]]) -> None:
        """Counts a block of usable rows."""
        texts = [self.labelled(place, row) if isinstance(row, Row) else self.text(place, row) for place, row in block]
        self.measure([row for _, row in block])
        if self.known:
            self.look_up([place for place, _ in block], texts, *self.known)

    def labelled(self, place: int, row: Row) -> Texts:
        tally = self.tally
        tally.usable += 1
        tally.prompted += row.prompt is not None
        tally.scored += row.positive_scores is not None
        tally.positives[len(row.positives)] += 1
        tally.negatives[len(row.negatives)] += 1
        positives, negatives = ([check_rows.normalised(each) for each in listed] for listed in (row.positives, row.negatives))
        texts = Texts(check_rows.normalised(row.query), positives, negatives)
        instruction = self.source.query_instruction if row.prompt is None else row.prompt
        for kind in check_rows.row_findings(row, str(texts.query), positives, negatives, instruction):
            tally.add(kind, place, check_rows.excerpt(row.query))
        query, of_positives, whole = check_rows.identity(row)
        self.spill.add(query, of_positives, whole, place)
        if self.job.near_rows:
            self.samples["query"].add(row.query, query, place)
            for positive in row.positives:
                self.samples["passage"].add(positive, check_rows.digest(positive), place)
        self.sample(place, [row.query, *row.positives[:1]])
        return texts

    def text(self, place: int, text: str) -> Texts:
        self.tally.usable += 1
        for kind in check_rows.text_findings([text]):
            self.tally.add(kind, place, check_rows.excerpt(text))
        number = check_rows.digest(text)
        self.spill.add(number, 0, number, place)
        if self.job.near_rows:
            self.samples["text"].add(text, number, place)
        self.sample(place, [text])
        return Texts(None, [check_rows.normalised(text)], [])

    def sample(self, place: int, texts: Sequence[str]) -> None:
        key = check_rows.combined([self.job.seed, place])
        self.tally.sample.add(key, place, tuple(each[:SEEN_BY_GUESS] for each in texts))

    def measure(self, rows: Sequence[Row | str]) -> None:
        """Counts the tokens of each text, a query with its instruction."""
        instruction = self.source.query_instruction
        labelled = [row for row in rows if isinstance(row, Row)]
        queries = [(instruction if row.prompt is None else row.prompt) + row.query for row in labelled]
        passages = [passage for row in labelled for passage in (*row.positives, *row.negatives)]
        for name, texts in (("query", queries), ("passage", passages), ("text", [row for row in rows if isinstance(row, str)])):
            if texts:
                self.tally.lengths[name].add(self.count(texts))

    def look_up(self, places: Sequence[int], texts: Sequence[Texts], queries: Known, passages: Known) -> None:
        """Looks for the texts of rows in the evaluation sets."""
        asked = [(place, each.query) for place, each in zip(places, texts, strict=True) if each.query is not None]
        for (place, _), at in zip(asked, queries.find(digests([text for _, text in asked])), strict=True):
            if at >= 0:
                self.tally.add("leaked_query", place, int(queries.places[at]))
        listed = [(place, text) for place, each in zip(places, texts, strict=True) for text in (*each.positives, *each.negatives)]
        hits: dict[int, list[int]] = {}
        for (place, _), at in zip(listed, passages.find(digests([text for _, text in listed])), strict=True):
            if at >= 0:
                hits.setdefault(place, []).append(int(at))
        for place, found in hits.items():
            relevant = [at for at in found if passages.relevant[at]]
            kind = "leaked_passage" if relevant else "shared_passage"
            self.tally.add(kind, place, int(passages.places[(relevant or found)[0]]))

    def done(self) -> Tally:
        """Writes what is held and makes the signatures."""
        self.spill.flush()
        self.tally.near = {name: check_near.signed(sample) for name, sample in self.samples.items()}
        self.tally.near_full = {name for name, sample in self.samples.items() if sample.full}
        return self.tally


def digests(texts: Sequence[str]) -> np.ndarray:
    return np.array([check_rows.digest(text) for text in texts], np.uint64)


def counter(tokenizer: Any) -> Callable[[Sequence[str]], np.ndarray]:
    """texts -> int64 [N], the tokens of each with its special tokens, none cut."""
    if tokenizer is None:
        return lambda texts: np.array([check_rows.estimated_tokens(text) for text in texts])
    inside = tokenizer.backend_tokenizer
    inside.no_truncation()
    inside.no_padding()
    return lambda texts: np.array([len(each.ids) for each in inside.encode_batch_fast(list(texts))])
