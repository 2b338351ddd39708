"""The check of a source: every row read once, by several workers, into one report."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bgetrain.data import check_duplicates as duplicates
from bgetrain.data import check_near as near
from bgetrain.data.check_files import estimated_rows, refuse_binary
from bgetrain.data.check_kinds import kind_of
from bgetrain.data.check_leakage import Evaluation, read_evaluation
from bgetrain.data.check_places import First
from bgetrain.data.check_report import source_report
from bgetrain.data.check_scan import Job, scan
from bgetrain.data.check_tally import Tally
from bgetrain.data.workers import in_parallel
from bgetrain.sources import Source
from bgetrain.types import NonNegativeInt, PositiveInt, Ratio

Track = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def examine(
    open_source: Callable[[], Source],
    load_tokenizer: Callable[[], Any] | None,
    measured: str,
    seed: int,
    folder: Path,
    track: Track,
    *,
    num_workers: PositiveInt,
    near_duplicates: Ratio | None,
    near_rows: PositiveInt,
    language_rows: NonNegativeInt,
    leakage: list[str],
    places: PositiveInt,
    strict: bool,
) -> dict[str, Any]:
    """Reads all rows of a source once and reports what is found in them, the same for any number of workers.

    Args:
        open_source: opens what is checked; called in each worker, so it must be picklable.
        load_tokenizer: loads a fast tokenizer of transformers; None: lengths are estimated.
        measured: how lengths are counted, in words.
        seed: of the samples.
        folder: an empty one, for what does not fit into memory: 32 bytes a row and 17 for each text evaluated.
        track: shows how far it is: (what is done, pieces) -> a context that gives advance(n).
        num_workers: processes that read.
        near_duplicates: Jaccard similarity from which two texts are close; None: they are not compared.
        near_rows: most texts of a sort that are compared.
        language_rows: rows whose language is guessed.
        leakage: folders in BEIR layout whose texts are looked for.
        places: of each kind that are told.
        strict: whether rows that are unusable or harmful make a `refusal`.

    Returns:
        report: `data`, `rows`, `usable_rows`, `counts` of each kind, `leakage`, `refusal` (None, or the first finding in one
        line) and a report for each of `sources`.

    Raises:
        ValueError: a file is missing, empty or not of its kind; a near_duplicates of 0.
    """
    if near_duplicates == 0:
        raise ValueError("check.near_duplicates=0 would make all texts close: give a similarity above 0, or null")
    opened = open_source()
    evaluation = read_evaluation(leakage, near_rows if near_duplicates else 0) if leakage else None
    if evaluation:
        evaluation.queries.save(folder, "queries")
        evaluation.passages.save(folder, "passages")
    reports = []
    for number, source in enumerate(leaves(opened)):
        into = folder / f"source-{number}"
        into.mkdir()
        job = Job(
            partial(part_of, open_source, number),
            load_tokenizer,
            into,
            folder if evaluation else None,
            seed,
            near_rows if near_duplicates else 0,
            language_rows,
            places,
        )
        tally = read(source, job, num_workers, track)
        add_duplicates(tally, into)
        shutil.rmtree(into)
        facts = add_near(tally, near_duplicates, near_rows, evaluation) if near_duplicates else None
        known = evaluation.places if evaluation else None
        reports.append(source_report(source, tally, known, measured=measured, near=facts))
    return summary(opened.name, reports, leakage_facts(evaluation), strict)


def summary(name: str, reports: Sequence[dict[str, Any]], leakage: dict[str, Any] | None, strict: bool) -> dict[str, Any]:
    """The reports of all sources in one."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update({kind: found["count"] for kind, found in report["kinds"].items()})
    faults = [fault for report in reports for fault in first_fault(report)]
    return {
        "data": name,
        "rows": sum(report["rows"] for report in reports),
        "usable_rows": sum(report["usable_rows"] for report in reports),
        "counts": dict(counts),
        "leakage": leakage,
        "refusal": faults[0] if strict and faults else None,
        "sources": list(reports),
    }


def part_of(open_source: Callable[[], Source], number: int) -> Source:
    return leaves(open_source())[number]


def leaves(opened: Source) -> list[Source]:
    """The source, or those that a mixture is made of, also where one of them is a mixture; named by their parts."""
    if opened.mix is None:
        return [opened]
    found = [(part.name, leaf) for part in opened.mix.parts for leaf in leaves(part.source)]
    return [leaf._replace(name=f"{name} ({leaf.name})") for name, leaf in found]


def read(source: Source, job: Job, num_workers: int, track: Track) -> Tally:
    """All rows of a source, counted.

    Raises:
        ValueError: there is none, or a file is no text.
    """
    if source.scan is None and source.rows is None:
        raise ValueError(f"{source.name} has no rows to check: use data=jsonl, data=text or data=beir")
    for file in source.files:
        refuse_binary(Path(file))
    expected, done = estimated_rows(source), 0
    with track(f"check {source.name}", expected) as advance:

        def show(n: int) -> None:  # never beyond the estimate
            nonlocal done
            advance(min(n, max(0, expected - 1 - done)))
            done += n

        tallies = in_parallel(scan, job, num_workers, show)
        advance(expected - min(done, max(0, expected - 1)))
    tally = tallies[0]
    samples = [each.near for each in tallies]
    for other in tallies[1:]:
        tally.join(other)
    for name in samples[0]:
        if len(set().union(*(each[name] for each in samples))) > job.near_rows:
            tally.near_full.add(name)
        tally.near[name] = near.joined([each[name] for each in samples], job.near_rows)
    if not tally.rows:
        raise ValueError(f"{', '.join(map(str, source.files)) or source.name}: no rows in it")
    return tally


def add_duplicates(tally: Tally, folder: Path) -> None:
    """Adds the rows that repeat an earlier one."""
    texts = bool(int(tally.lengths["text"].counts.sum()))
    same = "duplicate_text" if texts else "duplicate_row"
    for records in duplicates.buckets(folder):
        for kind, found in ((same, duplicates.equal_rows(records)), ("duplicate_query", duplicates.equal_queries(records))):
            if len(found.places):
                pairs = zip(found.places[: tally.most].tolist(), found.originals[: tally.most].tolist(), strict=True)
                tally.found(kind, len(found.places), list(pairs))


def add_near(tally: Tally, threshold: float, near_rows: int, evaluation: Evaluation | None) -> dict[str, Any]:
    """Adds the texts that are close to an earlier one or to one of an evaluation set; returns how they were looked for."""
    facts: dict[str, Any] = {"threshold": threshold, "near_rows": near_rows, "texts": {}, "sampled": []}
    known = {
        "query": ("leaked_query", evaluation.near_queries if evaluation else {}),
        "passage": ("leaked_passage", evaluation.near_passages if evaluation else {}),
        "text": ("leaked_passage", evaluation.near_passages if evaluation else {}),
    }
    for name, sample in tally.near.items():
        if not sample:
            continue
        facts["texts"][name] = len(sample)
        if name in tally.near_full:
            facts["sampled"].append(name)
        leaked, others = known[name]
        for kind, pairs in (
            (f"near_duplicate_{name}", near.close_pairs(sample, threshold)),
            (f"near_{leaked}", near.close_to(sample, others, threshold) if others else []),
        ):
            kept = First(tally.most)
            for pair in pairs:
                kept.add(pair.place, (pair.other, pair.similarity))
            if kept.count:
                tally.found(kind, kept.count, kept.kept)
    return facts


def leakage_facts(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {
        "splits": evaluation.splits,
        "queries": len(evaluation.queries.keys),
        "relevant_passages": int(np.count_nonzero(evaluation.passages.relevant)),
        "passages": len(evaluation.passages.keys),
    }


def first_fault(report: dict[str, Any]) -> Iterator[str]:
    """The first unusable or harmful row of a source, in one line."""
    for name, found in report["kinds"].items():
        if kind_of(name).severity != "notice":
            first = f"{found['places'][0]}: {found['meaning']} ({found['details'][0]})"
            yield f"{first}; {found['count']:,} such rows: {found['remedy']}"
            return
