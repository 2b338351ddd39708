"""Which positive, which negatives, which instruction: drawn by (seed, epoch, row) and nothing else."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from plans import single

from bgetrain.data.groups import Feed, check_groups, group, group_batch, keys, strangers
from bgetrain.data.order import hashed
from bgetrain.data.plan import Plan, Stream
from bgetrain.data.tokenize import train_wordpiece
from bgetrain.sources import Row, Source


def feed(rows, of, group_size=1, *, keyed=False, scored=False, symmetric=False) -> Feed:
    return Feed(
        "test",
        rows,
        of.query_max_len,
        of.passage_max_len,
        of.query_instruction,
        of.missing_negatives,
        group_size,
        keyed,
        scored,
        symmetric,
    )


def group_batches(rows, of, tokenizer, plan, part, *, guide=None, **changes):
    return partial(group_batch, [feed(rows, of, **changes)], tokenizer, guide, plan, lambda size: part)


class Listed:
    """Rows in memory."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices):
        return [self.rows[index] for index in indices]

    def where(self, index: int) -> str:
        return f"rows.jsonl:{index + 1}"


def row(number: int = 0, positives: int = 1, negatives: int = 0, prompt: str | None = None) -> Row:
    return Row(
        f"q{number}",
        [f"p{number}{each}" for each in "abcdefgh"[:positives]],
        [f"n{number}x{n}" for n in range(negatives)],
        prompt,
    )


def source(instruction: str = "", missing: str = "random") -> Source:
    return Source("data=test", None, None, None, [], "train", 32, 32, instruction, missing)


MANY = Listed([row(number, positives=1 + number % 4) for number in range(50)])


def test_the_positive_is_drawn_by_seed_epoch_and_row():
    for seed, epoch, number in ((1, 0, 0), (1, 0, 7), (1, 5, 7), (2, 5, 7)):
        expected = f"p3{'abcdefgh'[int(hashed(seed, 1, epoch, number)) % 8]}"
        assert group(MANY, row(3, positives=8), number, epoch, 1, seed).passages == [expected]


def test_over_epochs_and_rows_every_positive_is_drawn_alike():
    counts = Counter(
        group(MANY, row(0, positives=4), number, epoch, 1, 0).passages[0] for number in range(100) for epoch in range(40)
    )
    assert len(counts) == 4
    assert max(abs(count - 1000) for count in counts.values()) < 5 * 27.4  # five standard deviations


def test_negatives_come_without_repeats_until_all_were_used_and_then_begin_again():
    one = row(0, negatives=7)
    drawn = [
        negative for epoch in range(7) for negative in group(MANY, one, 5, epoch, 4, seed=1).passages[1:]
    ]  # 21 = three rounds
    for start in (0, 7, 14):
        assert sorted(drawn[start : start + 7]) == sorted(one.negatives)
    assert drawn[:7] == drawn[7:14] != one.negatives
    other = [negative for epoch in range(2) for negative in group(MANY, one, 6, epoch, 4, seed=1).passages[1:]]
    assert other != drawn[:6]  # another row, another order


@pytest.mark.parametrize(("have", "wanted"), [(2, 7), (3, 7), (7, 7), (1, 3)])
def test_too_few_negatives_are_tiled_evenly(have, wanted):
    negatives = group(MANY, row(0, negatives=have), 3, 2, wanted + 1, seed=4).passages[1:]
    counts = Counter(negatives)
    assert len(negatives) == wanted
    assert len(counts) == have
    assert max(counts.values()) - min(counts.values()) <= 1


def test_strangers_are_positives_of_other_rows_and_never_of_this_one():
    rows = Listed([Row("q", ["same"], [], None)] * 8 + [row(1), row(2)])
    found = Counter(each for epoch in range(50) for each in strangers(rows, rows.rows[0], 0, epoch, 3, seed=0))
    assert set(found) == {"p1a", "p2a"}
    assert found.total() == 150
    assert group(rows, rows.rows[0], 0, 1, 4, 0).passages[1:] == strangers(rows, rows.rows[0], 0, 1, 3, 0)


def test_a_row_without_strangers_is_named():
    with pytest.raises(ValueError, match=r"^rows\.jsonl:1: found no passage of another row .* set group_size=1$"):
        strangers(Listed([Row("q", ["same"], [], None)] * 2), Row("q", ["same"], [], None), 0, 0, 1, 0)


def test_rows_without_negatives_are_refused_or_filled_as_asked():
    rows = Listed([row(0, negatives=2), row(1)])
    said: list[str] = []
    with pytest.raises(ValueError, match=r"^rows\.jsonl:2: group_size=3 needs negatives and this row has none: .*stage=mine"):
        check_groups(feed(rows, source(missing="refuse"), 3), said.append)
    check_groups(feed(rows, source(missing="refuse"), 1), said.append)
    assert said == []
    check_groups(feed(rows, source(), 3), said.append)
    assert said == ["1 of the first 2 rows of test have no negatives: random passages of other rows stand in"]
    said.clear()
    check_groups(feed(rows, source(), 8), said.append)
    assert said[1] == (
        "1 of the first 2 rows of test have fewer than the 7 negatives of group_size=8 (the fewest 2): theirs are repeated"
    )


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(
        [f"q{n} p{n}{c} n{n}x{m} own find none" for n in range(50) for c in "abcd" for m in range(3)], 1000, 32
    )


def decoded(tokenizer, text) -> list[str]:
    return tokenizer.batch_decode([ids.tolist() for ids in text.ids.split(text.lengths.tolist())], skip_special_tokens=True)


def test_a_row_s_prompt_takes_the_place_of_the_instruction_also_when_empty(tokenizer):
    rows = Listed([row(0), row(1, prompt="own "), row(2, prompt="")])
    batch_at = group_batches(rows, source("find "), tokenizer, single(3, 3, 0), range(3), group_size=1)
    batch = batch_at(1)
    queries = dict(zip(batch.rows.tolist(), decoded(tokenizer, batch.query), strict=True))
    assert queries == {0: "find q0", 1: "own q1", 2: "q2"}  # never "None"


def test_a_batch_holds_each_query_s_group_in_turn_and_ranks_share_it(tokenizer):
    rows = Listed([row(number, positives=2, negatives=3) for number in range(10)])

    def batches(part: range):
        return group_batches(rows, source(), tokenizer, single(10, 6, 1), part, group_size=3)

    whole = batches(range(6))(4)  # the fourth step begins in the second epoch
    plan = single(10, 6, 1)
    draw = plan.draw(4, range(6))
    assert whole.rows.tolist() == draw.rows.tolist()
    assert whole.epoch == 1.8
    expected = [
        text
        for number, epoch in zip(draw.rows, draw.epochs, strict=True)
        for text in group(rows, rows.rows[number], int(number), int(epoch), 3, 1).passages
    ]
    assert decoded(tokenizer, whole.passage) == expected
    parts = [batches(range(4))(4), batches(range(4, 6))(4)]
    assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
    assert [text for part in parts for text in decoded(tokenizer, part.passage)] == expected


def test_queries_and_passages_are_cut_at_their_own_lengths(tokenizer):
    long = Listed([Row("own " * 40, ["find " * 40], [], None)])
    lengths = source()._replace(query_max_len=8, passage_max_len=16)
    batch = group_batches(long, lengths, tokenizer, single(1, 1, 0), range(1), group_size=1)(1)
    assert (batch.query.lengths.tolist(), batch.passage.lengths.tolist()) == ([8], [16])


def test_a_teacher_s_scores_go_with_their_passages(tokenizer):
    one = row(0, positives=3, negatives=3)
    of = {text: float(number) for number, text in enumerate([*one.positives, *one.negatives])}
    one = one._replace(positive_scores=[of[text] for text in one.positives], negative_scores=[of[text] for text in one.negatives])
    rows = Listed([one, row(1, negatives=2)])
    for epoch in range(6):
        found = group(rows, one, 0, epoch, 4, seed=3)
        assert found.scores == [of[text] for text in found.passages]
    batch = group_batches(Listed([one]), source(), tokenizer, single(1, 1, 0), range(1), group_size=4, scored=True)(2)
    assert batch.teacher.tolist() == [[of[text] for text in decoded(tokenizer, batch.passage)]]
    with pytest.raises(ValueError, match=r"^rows\.jsonl:2: has no pos_scores and neg_scores for the 2 passages .*teacher=none$"):
        check_groups(feed(rows, source(), 2, scored=True), print)
    with pytest.raises(ValueError, match=r"^rows\.jsonl:2: has no pos_scores"):
        group_batches(rows, source(), tokenizer, single(2, 2, 0), range(2), group_size=2, scored=True)(1)
    without = one._replace(negatives=[], negative_scores=None)  # strangers have no scores
    assert group(rows, without, 0, 0, 2, seed=3).scores is None
    assert group(rows, without, 0, 0, 1, seed=3).scores is not None


def test_equal_texts_have_equal_keys_and_others_do_not(tokenizer):
    rows = Listed([row(0, positives=2, negatives=1), row(1, negatives=1)._replace(query=" q0 ", prompt="own ")])
    batch = group_batches(rows, source("find "), tokenizer, single(2, 2, 0), range(2), group_size=2, keyed=True)(1)
    first = batch.rows.tolist().index(0)
    assert batch.keys.query[0] == batch.keys.query[1] == keys(["q0"])[0]
    assert batch.keys.positives.lengths[first] == 2
    texts = decoded(tokenizer, batch.passage)
    assert torch.equal(batch.keys.passage, keys(texts))
    assert set(keys(["p0a", "p0b", "p1a"]).tolist()) == set(batch.keys.positives.ids.tolist())
    assert len(set(keys([f"text {number}" for number in range(10_000)]).tolist())) == 10_000


def test_a_guide_reads_the_same_texts_in_its_own_tokens(tokenizer):
    guide = train_wordpiece(["q0 p0a find"], 40, 32)
    batch = group_batches(Listed([row(0)]), source("find "), tokenizer, single(1, 1, 0), range(1), group_size=1, guide=guide)(1)
    assert [decoded(guide, each) for each in batch.guide] == [["find q0"], ["p0a"]]


def test_a_mixed_batch_has_each_source_s_rows_instruction_and_lengths(tokenizer):
    """Every text of the batch as the plan's draw and plain tokenisation of one text at a time have it."""
    long = Listed([Row(f"q{n} " + "own " * 20, [f"p{n}a " + "find " * 20], [f"n{n}x0"], None) for n in range(30)])
    feeds = [
        feed(Listed([row(n, negatives=1) for n in range(20)]), source("find "), 2, keyed=True),
        feed(long, source("own ")._replace(query_max_len=9, passage_max_len=6), 2, keyed=True),
    ]
    plan = Plan([Stream(20, 8, 0.4), Stream(30, 8, 0.6)], 3, mixed=True)
    for part in (range(8), range(3, 7)):
        batch = group_batch(feeds, tokenizer, None, plan, lambda size, part=part: part, 5)
        draw = plan.draw(5, part)
        assert set(draw.sources.tolist()) == {0, 1}
        queries, passages, plain = [], [], []
        for number, place in zip(draw.sources.tolist(), draw.rows.tolist(), strict=True):
            of = feeds[number]
            one = of.rows.rows[place]
            cut = {"truncation": True, "max_length": of.query_max_len}
            queries.append(tokenizer(of.query_instruction + one.query, **cut)["input_ids"])
            for text in (one.positives[0], one.negatives[0]):
                passages.append(tokenizer(text, truncation=True, max_length=of.passage_max_len)["input_ids"])
                plain.append(text)
        for found, expected in ((batch.query, queries), (batch.passage, passages)):
            assert [each.tolist() for each in found.ids.split(found.lengths.tolist())] == expected
        assert torch.equal(batch.keys.passage, keys(plain))
        assert (batch.size, batch.source, batch.sources.tolist()) == (8, None, draw.sources.tolist())


def test_symmetric_passages_have_the_instruction_and_equal_texts_are_found_without_it(tokenizer):
    rows = Listed([row(1, negatives=1, prompt="own "), row(2, negatives=1)])
    plan = single(2, 2, 0)
    batch = group_batch([feed(rows, source("find "), 2, keyed=True, symmetric=True)], tokenizer, None, plan, range, 1)
    order = plan.draw(1).rows.tolist()
    prompts, numbers = ["own ", "find "], [1, 2]
    wanted = [f"{prompts[at]}{text}" for at in order for text in (f"p{numbers[at]}a", f"n{numbers[at]}x0")]
    assert decoded(tokenizer, batch.passage) == wanted
    assert torch.equal(batch.keys.passage, keys([text.split()[1] for text in wanted]))


def test_strangers_differ_while_there_are_enough():
    many = Listed([row(number) for number in range(20)])
    for number in range(20):
        found = strangers(many, many.rows[number], number, 0, 7, 5)
        assert len(set(found)) == 7
        assert f"p{number}a" not in found
