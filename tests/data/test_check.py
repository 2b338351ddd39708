"""The parts of a check against slow references: duplicates by sets, closeness by exact Jaccard, lengths one by one."""

import random

import numpy as np
import pytest

from bgetrain.data import check_duplicates as duplicates
from bgetrain.data import check_near as near
from bgetrain.data.check_kinds import KINDS
from bgetrain.data.check_places import First, Places
from bgetrain.data.check_report import bars
from bgetrain.data.check_rows import estimated_tokens, normalised, row_findings, text_findings
from bgetrain.data.check_tally import LONGEST, Least, Lengths
from bgetrain.sources import Row

WORDS = [first + second + third for first in "bdfgklmprst" for second in "aeiou" for third in ("n", "r", "st", "ld")]


def words(draw: random.Random, count: int) -> list[str]:
    return [draw.choice(WORDS) for _ in range(count)]


# --- rows by themselves -----------------------------------------------------------------------------------------------

ROWS = [
    (Row("fox", ["owl"], ["cat"], None), []),
    (Row("Where  is fox", ["where is FOX "], [], None), ["query_is_positive"]),
    (Row("fox", ["owl", "cat"], ["dog", "Cat"], None), ["positive_is_negative"]),
    (Row("fox", ["owl", "owl"], [], None), ["repeated_positive"]),
    (Row("fox", ["owl"], ["dog", "dog"], None), ["repeated_negative"]),
    (Row("find: fox", ["owl"], [], None), ["instruction_twice"]),
    (Row("fox", ["owl \ufffd"], [], None), ["replacement_character"]),
    (Row("fox\x07", ["owl"], [], None), ["control_character"]),
    (Row("fox\x85", ["owl"], [], None), ["control_character"]),
    (Row("fox", ["owl"], ["<br/>dog"], None), ["html"]),
    (Row("fox", ["a &nbsp; b"], [], None), ["html"]),
    (Row("fox", ["a < b & c > d, x&y; List<T>\ta\nb\r"], [], None), []),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_a_row_shows_these_kinds_and_no_other(row, expected):
    texts = (normalised(row.query), [normalised(each) for each in row.positives], [normalised(each) for each in row.negatives])
    assert list(row_findings(row, *texts, "Find: ")) == expected
    assert set(expected) <= set(KINDS)


def test_findings_of_texts_alone():
    assert list(text_findings(["plain", "text"])) == []
    assert list(text_findings(["\ufffd", "\x00 <p>"])) == ["replacement_character", "control_character", "html"]


def test_tokens_are_estimated_by_script():
    assert estimated_tokens("abcdefgh") == 2 + 2
    assert estimated_tokens("你好") == 2 + 2
    assert estimated_tokens("你好 abc") == 2 + 1 + 2


# --- places -----------------------------------------------------------------------------------------------------------


def test_places_sort_as_the_rows_stand_and_come_back():
    places = Places(["b:1.jsonl", "a.parquet"])
    wheres = ["b:1.jsonl:2", "b:1.jsonl:10", "a.parquet, row 3", "a hub, row 7"]
    packed = [places.pack(where) for where in wheres]
    assert packed == sorted(packed)
    assert [places.name(each) for each in packed] == wheres
    assert places.name(places.pack("whole file")) == "whole file"


def test_places_of_files_that_another_worker_has_read_are_named():
    one, two = Places(["a", "b"]), Places(["a", "b"])
    one.pack("a:1")
    place = two.pack("b:7")
    one.join(two.heads)
    assert one.name(place) == "b:7"


def test_the_first_places_are_kept_whatever_the_order():
    numbers = list(range(50))
    random.Random(1).shuffle(numbers)
    one, two = First(5), First(5)
    for number in numbers[:20]:
        one.add(number, str(number))
    for number in numbers[20:]:
        two.add(number, str(number))
    one.join(two)
    assert (one.count, one.kept) == (50, [(number, str(number)) for number in range(5)])


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_duplicates_are_those_that_plain_sets_find(tmp_path):
    draw = random.Random(3)
    rows = [(draw.randrange(300), draw.randrange(3), draw.randrange(2), place) for place in range(2000)]
    spills = [duplicates.Spill(tmp_path, part) for part in range(3)]
    for place, (query, positives, rest, _) in enumerate(rows):
        spills[place % 3].add(query * 7919, positives, hash((query, positives, rest)) % 2**63, place)
    for spill in spills:
        spill.flush()
    found_rows, found_queries = {}, {}
    for records in duplicates.buckets(tmp_path):
        for found, made in ((duplicates.equal_rows(records), found_rows), (duplicates.equal_queries(records), found_queries)):
            made.update(zip(found.places.tolist(), found.originals.tolist(), strict=True))
    seen, pairs, queries = {}, set(), {}
    equal_rows, equal_queries = {}, {}
    for query, positives, rest, place in rows:
        if (query, positives, rest) in seen:
            equal_rows[place] = seen[query, positives, rest]
        seen.setdefault((query, positives, rest), place)
        if query in queries and (query, positives) not in pairs:
            equal_queries[place] = queries[query]
        pairs.add((query, positives))
        queries.setdefault(query, place)
    assert found_rows == equal_rows
    assert found_queries == equal_queries
    assert len(equal_rows) > 100
    assert len(equal_queries) > 100


# --- near duplicates --------------------------------------------------------------------------------------------------


def jaccard(one: str, two: str) -> float:
    sets = [{text[at : at + near.SHINGLE] for at in range(len(text) - near.SHINGLE + 1)} for text in map(normalised, (one, two))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_estimates_are_those_of_exact_jaccard():
    draw = random.Random(5)
    for changes in (0, 1, 3, 8, 40):
        one = words(draw, 40)
        two = [draw.choice(WORDS) if place < changes else word for place, word in enumerate(one)]
        estimate = near.signature(" ".join(one)).jaccard(near.signature(" ".join(two)))
        assert estimate == pytest.approx(jaccard(" ".join(one), " ".join(two)), abs=0.15)  # three standard errors


def test_shingles_are_the_runs_of_five_characters():
    text = "Ab你  cdefgh ab你 cdefgh"
    assert len(near.shingles(text)) == len({normalised(text)[at : at + 5] for at in range(len(normalised(text)) - 4)})
    assert len(near.shingles("fox")) == len(near.shingles("")) == 1


def sample_of(texts: list[str], most: int, part: int = 0, parts: int = 1) -> near.Sample:
    sample = near.Sample(most)
    for place in range(part, len(texts), parts):
        sample.add(texts[place], hash(texts[place]) % 2**63, place)
    return sample


def close_texts() -> list[str]:
    """300 texts, every tenth repeated with one word added."""
    draw = random.Random(7)
    texts = [" ".join(words(draw, 60)) for _ in range(300)]
    return texts + [f"{text} more" for text in texts[::10]]


def test_close_texts_are_found_and_no_others():
    texts = close_texts()
    found = near.close_pairs(near.signed(sample_of(texts, 1000)), 0.9)
    # the added word leaves a Jaccard similarity of 0.98 or so, whose estimate is below 0.9 for one in 10^8
    assert [(pair.place, pair.other) for pair in found] == [(300 + number, number * 10) for number in range(30)]


@pytest.mark.parametrize("most", [50, 1000])
def test_a_sample_is_the_same_for_any_division_and_keeps_close_texts_together(most):
    texts = close_texts()
    whole = near.joined([near.signed(sample_of(texts, most))], most)
    parts = near.joined([near.signed(sample_of(texts, most, part, 3)) for part in range(3)], most)
    assert {number: each.place for number, each in whole.items()} == {number: each.place for number, each in parts.items()}
    assert len(whole) == min(most, len(texts))
    drawn = {each.place for each in whole.values()}
    pairs = [(number * 10 in drawn, 300 + number in drawn) for number in range(30)]
    assert sum(first and second for first, second in pairs) > 0.6 * sum(first or second for first, second in pairs) > 0


def test_closeness_to_other_texts_leaves_equal_ones_out():
    train = ["a fox under the green tree near the river", "an owl in a house of stone on the hill", "something else altogether"]
    others = ["A fox under the green tree near the river ", "an owl in a house of stone on the hills"]
    found = near.close_to(near.signed(sample_of(train, 10)), near.signed(sample_of(others, 10)), 0.8)
    assert [(pair.place, pair.other) for pair in found] == [(1, 1)]


# --- counts -----------------------------------------------------------------------------------------------------------


def test_lengths_are_counted_as_one_by_one_and_in_parts():
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.integers(0, 400, 1000), [LONGEST + 500]])
    whole, one, two = Lengths(128), Lengths(128), Lengths(128)
    whole.add(values)
    one.add(values[::2])
    two.add(values[1::2])
    one.join(two)
    for each in (whole, one):
        assert each.tokens == sum(values)
        assert each.cut == sum(value > 128 for value in values)
        assert each.lost == sum(max(0, value - 128) for value in values)
        assert each.longest == LONGEST + 500
        assert each.quantile(0.5) == sorted(values)[len(values) // 2]
    np.testing.assert_array_equal(whole.counts, one.counts)


def test_bars_lose_no_text():
    for last in (0, 1, 39, 40, 41, 100, 512):
        counts = np.arange(1, 513)
        made = bars(counts, last)
        assert sum(made["counts"]) == counts.sum()
        assert len(made["edges"]) == len(made["counts"]) + 1
        low, high = made["edges"][:2]
        if len(made["counts"]) > 1:
            assert made["counts"][0] == counts[low:high].sum()


def test_a_sample_by_keys_is_the_same_for_any_division():
    draw = random.Random(2)
    items = [(draw.randrange(10**6), place, (str(place),)) for place in range(500)]
    whole, parts = Least(20), [Least(20) for _ in range(4)]
    for number, item in enumerate(items):
        whole.add(*item)
        parts[number % 4].add(*item)
    for part in parts[1:]:
        parts[0].join(part)
    assert parts[0].texts() == whole.texts() == [texts for _, _, texts in sorted(items)[:20]]
    Least(0).add(*items[0])
