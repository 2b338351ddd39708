"""Several sources: what share each has, and what is said of shares that do not agree."""

import numpy as np
import pytest

from bgetrain.data import mixture as mixtures
from bgetrain.data.mixture import Bucket, ChainedTexts, flagembedding, mixture, plan
from bgetrain.sources import Mix, Part, Source

SOURCE = Source("data=test", None, None, None, [], "train", 32, 32, "", "random")
SIZES = [1000, 200, 40]


def mix(*parts: dict, batches: str = "source", power: float = 1.0) -> Mix:
    return Mix([Part(f"s{number}", SOURCE, **keys) for number, keys in enumerate(parts)], batches, power)


def feeds(batches=(20, 10, 5)) -> list[Bucket]:
    return [Bucket(number, size, batch) for number, (size, batch) in enumerate(zip(SIZES, batches, strict=True))]


def rows_drawn(made, steps: int) -> np.ndarray:
    found = np.zeros(len(made.streams))
    for step in range(1, steps + 1):
        found[made.source(step)] += made.size(step)
    return found


def test_an_epoch_by_size_draws_each_source_once():
    made = plan(mix({}, {}, {}), feeds(), 3)
    assert made.steps(1) == 1000 // 20 + 200 // 10 + 40 // 5
    assert np.abs(rows_drawn(made, made.steps(1)) - SIZES).max() <= 2 * 20  # two steps of the largest batch


@pytest.mark.parametrize(("power", "shares"), [(0.0, [1, 1, 1]), (0.5, [1000**0.5, 200**0.5, 40**0.5])])
def test_powers_flatten_the_shares(power, shares):
    made = plan(mix({}, {}, {}, power=power), feeds(), 3)
    drawn = rows_drawn(made, 2000)
    assert drawn / drawn.sum() == pytest.approx(np.array(shares) / sum(shares), abs=0.005)


def test_weights_are_shares_of_the_rows_whatever_the_batches():
    drawn = rows_drawn(plan(mix({"weight": 1.0}, {"weight": 3}, {"weight": 4.0}), feeds(), 3), 2000)
    assert drawn / drawn.sum() == pytest.approx(np.array([1, 3, 4]) / 8, abs=0.005)


def test_epochs_and_steps_of_each_source_make_up_the_whole():
    made = plan(mix({"epochs": 1.0}, {"epochs": 2.0}, {"epochs": 10}), feeds(), 3)
    assert made.steps(1) == 50 + 40 + 80
    assert np.abs(rows_drawn(made, 170) - [1000, 400, 400]).max() <= 40
    made = plan(mix({"steps": 7}, {"steps": 3}, {"steps": 20}), feeds(), 3)
    assert made.steps(1) == 30
    assert np.abs(rows_drawn(made, 30) / [20, 10, 5] - [7, 3, 20]).max() <= 2
    assert made.epoch(31) == pytest.approx(1.0)


def test_length_buckets_of_a_part_share_its_weight_by_their_rows():
    buckets = [Bucket(0, 600, 20), Bucket(0, 400, 8), Bucket(1, 200, 10)]
    drawn = rows_drawn(plan(mix({"weight": 1.0}, {"weight": 1.0}), buckets, 3), 4000)
    assert drawn / drawn.sum() == pytest.approx([0.3, 0.2, 0.5], abs=0.005)


def test_shares_given_for_some_sources_only_or_twice_are_refused():
    with pytest.raises(ValueError, match=r"each source one of weight, epochs and steps, or none .* s0 has weight, s1 has none$"):
        plan(mix({"weight": 1.0}, {}), feeds()[:2], 0)
    with pytest.raises(ValueError, match="s0 has weight and steps"):
        plan(mix({"weight": 1.0, "steps": 3}), feeds()[:1], 0)
    with pytest.raises(ValueError, match="global_batch must be the same for each"):
        plan(mix({}, {}, {}, batches="mixed"), feeds(), 0)


class Listed(list):
    """Texts in memory."""

    def take(self, indices):
        return [self[index] for index in indices]


def test_chained_texts_are_taken_from_where_they_stand():
    texts = ChainedTexts([Listed("abc"), Listed([]), Listed("de")])
    assert len(texts) == 5
    assert texts.take([4, 0, 3, 3, 2]) == ["e", "a", "d", "d", "c"]


def test_a_mixture_opens_its_sources_and_names_the_one_that_fails(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"query": "q", "pos": ["p"]}\n')
    opened: list[dict] = []

    def call(node):
        opened.append(dict(node))
        if node["_target_"] == "bad":
            raise ValueError("data.files: nothing there")
        return SOURCE._replace(query_max_len=node["length"], query_instruction=node["words"], files=[node["_target_"]])

    monkeypatch.setattr(mixtures, "call", call)
    none = dict.fromkeys(("query_max_len", "passage_max_len", "query_instruction", "missing_negatives", "on_bad_row", "split"))
    node = {"_target_": "x", "length": 8, "words": "find "}
    parts = {"a": {**node, "weight": 2.0}, "b": {"_target_": "y", "length": 9, "words": "find "}}
    made = mixture(parts, batches="source", power=1.0, **none)
    assert opened[0] == node
    assert (made.query_max_len, made.query_instruction, made.files) == (9, "find ", ["x", "y"])
    assert [(part.name, part.weight) for part in made.mix.parts] == [("a", 2.0), ("b", None)]
    other = {**parts, "c": {"_target_": "z", "length": 1, "words": ""}}
    assert mixture(other, batches="source", power=1.0, **none).query_instruction == ""
    with pytest.raises(ValueError, match=r"^data\.sources\.c: data\.files: nothing there$"):
        mixture({**parts, "c": {"_target_": "bad"}}, batches="source", power=1.0, **none)


def test_flagembedding_s_rules_become_keys_of_parts(tmp_path):
    row = '{"query": "q", "pos": ["p"], "neg": ["n"]%s}\n'
    files = {"a.jsonl": "", "b_no_in_batch_neg.jsonl": ', "type": "only_1neg"', "c/d.jsonl": ', "type": "symmetric_sts"'}
    files["e_no_in_batch_neg/f.jsonl"] = ', "type": "symmetric_class"'
    for name, kind in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(row % kind)
    made = flagembedding(
        str(tmp_path), batches="source", power=1.0, on_bad_row="stop", query_max_len=8, passage_max_len=9, query_instruction="",
        missing_negatives="random", split="train",
    )  # fmt: skip
    assert [(part.name, part.group_size, dict(part.loss), part.symmetric) for part in made.mix.parts] == [
        ("a", None, {}, False),
        ("b_no_in_batch_neg", 2, {"negatives": "group"}, False),
        ("c/d", None, {}, True),
        ("e_no_in_batch_neg/f", None, {"negatives": "group"}, False),
    ]
    assert [part.source.rows().take([0])[0].query for part in made.mix.parts] == ["q"] * 4
    assert (made.query_max_len, made.passage_max_len, len(made.files)) == (8, 9, 4)
