"""Counts of a check as plain values, for `report.json` and the page."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from bgetrain.data.check_kinds import KINDS, kind_of
from bgetrain.data.check_places import Detail, First, Places
from bgetrain.data.check_tally import Lengths, Tally
from bgetrain.sources import Source

BARS = 40  # of a histogram
SEVERITIES = ("unusable", "harmful", "notice")


def source_report(
    source: Source, tally: Tally, evaluation: Places | None, *, measured: str, near: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What was found in one source.

    Args:
        source: what was read.
        tally: of all its rows.
        evaluation: of the evaluation sets' files.
        measured: how lengths were counted, in words.
        near: how close texts were looked for.
    """
    rows = sum(tally.rows.values())
    order = {name: number for number, name in enumerate(KINDS)}
    kinds = sorted(tally.kinds, key=lambda name: (SEVERITIES.index(kind_of(name).severity), order.get(name, -1), name))
    return {
        "data": source.name,
        "rows": rows,
        "usable_rows": tally.usable,
        "files": [{"file": file_name(tally.places, each), "rows": tally.rows[each]} for each in sorted(tally.rows)],
        "kinds": {name: kind_report(name, tally.kinds[name], rows, tally.places, evaluation) for name in kinds},
        "lengths": {
            name: length_report(lengths, measured) for name, lengths in tally.lengths.items() if int(lengths.counts.sum())
        },
        "positives_per_row": row_histogram(tally.positives),
        "negatives_per_row": row_histogram(tally.negatives),
        "instructions": {
            "source": source.query_instruction,
            "rows_with_their_own": tally.prompted,
            "ratio_with_any": 1.0 if source.query_instruction and tally.usable else share(tally.prompted, tally.usable),
        },
        "scores": {"rows": tally.scored, "ratio": share(tally.scored, tally.usable)},
        "languages": languages(tally.sample.texts(), labelled=not tally.lengths["text"].counts.any()),
        "near_duplicates": near,
    }


def kind_report(name: str, found: First, rows: int, places: Places, evaluation: Places | None) -> dict[str, Any]:
    """Count, share of all rows, and places with what is said of each."""
    kind = kind_of(name)
    others = evaluation if "leaked" in name or name == "shared_passage" else places

    def words(detail: Detail) -> str:
        if isinstance(detail, str):
            return detail
        assert others is not None
        if isinstance(detail, tuple):
            return f"close to {others.name(detail[0])} (similarity {detail[1]:.2f})"
        return f"same as {others.name(detail)}"

    return {
        "severity": kind.severity,
        "meaning": kind.meaning,
        "remedy": kind.remedy,
        "count": found.count,
        "ratio": share(found.count, rows),
        "places": [places.name(place) for place, _ in found.kept],
        "details": [words(detail) for _, detail in found.kept],
    }


def length_report(lengths: Lengths, measured: str) -> dict[str, Any]:
    """Lengths against their limit; tokens are those of all texts, special tokens included."""
    texts = int(lengths.counts.sum())
    return {
        "measured": measured,
        "limit": lengths.limit,
        "texts": texts,
        "tokens": lengths.tokens,
        "mean": lengths.tokens / texts,
        "median": lengths.quantile(0.5),
        "quantile_99": lengths.quantile(0.99),
        "longest": lengths.longest,
        "cut_texts": lengths.cut,
        "cut_ratio": share(lengths.cut, texts),
        "lost_tokens": lengths.lost,
        "lost_ratio": share(lengths.lost, lengths.tokens),
        "histogram": bars(lengths.counts, max(lengths.quantile(0.995), min(lengths.limit, lengths.longest))),
    }


def row_histogram(counts: Counter[int]) -> dict[str, Any] | None:
    """How many rows list how many passages; None where no row lists any."""
    if not any(counts):
        return None
    values = np.zeros(max(counts) + 1, np.int64)
    for count, rows in counts.items():
        values[count] = rows
    total = int(values.sum())
    mean = float((values * np.arange(len(values))).sum() / total)
    return {"mean": mean, "rows_without": int(values[0]), "histogram": bars(values, max(counts))}


def bars(counts: np.ndarray, last: int) -> dict[str, list[int]]:
    """Counts of whole numbers from 0 in bars of equal width; the last bar holds all that is greater as well.

    Returns:
        edges, one more than there are bars: bar i counts edges[i] <= x < edges[i + 1]; counts.
    """
    width = max(1, -(-(last + 1) // BARS))
    edges = np.arange(0, last + 1 + width, width)
    found = np.add.reduceat(counts, np.minimum(edges[:-1], len(counts) - 1))
    return {"edges": edges.tolist(), "counts": found.tolist()}


def languages(sample: list[tuple[str, ...]], *, labelled: bool) -> dict[str, Any] | None:
    """A guess at the language of queries and positives, most frequent first; short texts are often guessed wrong."""
    if not sample:
        return None
    from py3langid.langid import classify

    guessed = [tuple(classify(text)[0] for text in texts) for texts in sample]
    sides = ("query", "passage") if labelled else ("text",)
    counts = {side: dict(Counter(each[at] for each in guessed if at < len(each)).most_common()) for at, side in enumerate(sides)}
    pairs = [each for each in guessed if len(each) == 2]
    return {"rows": len(sample), **counts, "rows_of_two_languages": sum(query != passage for query, passage in pairs)}


def file_name(places: Places, number: int) -> str:
    return places.heads[number].removesuffix(", row ").removesuffix(":")


def share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
