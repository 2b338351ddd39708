"""The sources of a mixture in a config: whose keys win, and one line for each mistake."""

import re

import pytest

from bgetrain import config

A, B = "a: {data: jsonl, files: [x.jsonl]}", "b: {data: msmarco, weight: 2}"


def composed(*arguments: str, stage: str = "finetune") -> dict:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config.compose([f"stage={stage}", "model=tiny", "data=mixture", *arguments]), resolve=True)


def test_a_source_has_the_keys_of_its_option_then_of_the_mixture_then_its_own():
    mine = "c: {data: jsonl, files: [y.jsonl], query_max_len: 16}"
    data = composed(f"data.sources={{{A}, {B}, {mine}}}", "data.query_max_len=48", "data.query_instruction='find '")["data"]
    sources = data["sources"]
    assert [each["query_max_len"] for each in sources.values()] == [48, 48, 16]
    assert [each["passage_max_len"] for each in sources.values()] == [256, 256, 256]
    assert [each["query_instruction"] for each in sources.values()] == ["find "] * 3
    assert sources["b"]["columns"]["pos"] == "positive_passages"
    assert (sources["b"]["weight"], "weight" in sources["a"], "data" in sources["a"]) == (2, False, False)


def test_what_a_stage_says_of_lengths_holds_for_every_source():
    sources = composed(f"data.sources={{{A}, {B}}}", stage="pairs")["data"]["sources"]
    assert [(each["query_max_len"], each["query_instruction"]) for each in sources.values()] == [(128, "")] * 2


def test_a_key_of_one_source_can_be_set_alone():
    sources = composed(f"data.sources={{{A}, {B}}}", "data.sources.b.path=/local", "data.sources.b.loss={temperature: 0.1}")[
        "data"
    ]["sources"]
    assert (sources["b"]["path"], sources["b"]["loss"]) == ("/local", {"temperature": 0.1})


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ("a: {data: jsonl}", "data.sources.a.files is missing: add data.sources.a.files=VALUE, a list"),
        ("a: {data: msmarc}", "data.sources.a.data=msmarc: no such option; did you mean msmarco?"),
        ("a: {data: mixture}", "data.sources.a.data=mixture: no such option"),
        ("a: {files: [x]}", "data.sources.a must say which data it is, e.g. {data: jsonl, files: [a.jsonl]}"),
        ("a: 3", "data.sources.a must say which data it is"),
        ("a: {data: jsonl, files: [x], weigth: 3}", "data.sources.a has no key 'weigth'; did you mean weight?"),
        ("a: {data: jsonl, files: [x], weight: -3}", "data.sources.a.weight must be a number above 0"),
        ("a: {data: jsonl, files: x}", "data.sources.a.files must be a list"),
        (
            "a: {data: jsonl, files: [x], loss: {temperatur: 1}}",
            "data.sources.a: loss has no key 'temperatur'; did you",
        ),
        ("a: {data: jsonl, files: [x], loss: {temperature: 0}}", "data.sources.a: loss.temperature must be a number above 0"),
        (
            "a: {data: jsonl, files: [x], loss: {negatives: group}, group_size: 1}",
            "data.sources.a: loss.negatives=group with",
        ),
        (
            "a: {data: jsonl, files: [x], loss: {learnable_temperature: true}}",
            "data.sources.a.loss.learnable_temperature: all",
        ),
    ],
)
def test_a_mistake_in_a_source_is_one_line_that_names_it(sources, words):
    with pytest.raises(ValueError, match=r"data\.sources\.a") as caught:
        composed(f"data.sources={{{sources}}}")
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_losses_of_sources_need_batches_of_one_source_and_a_stage_that_has_a_loss():
    with_loss = "data.sources={a: {data: jsonl, files: [x], loss: {temperature: 0.1}}}"
    with pytest.raises(ValueError, match=r"^data\.sources\.a\.loss needs batches of that source alone: set"):
        composed(with_loss, "data.batches=mixed")
    with pytest.raises(ValueError, match=r"^data\.sources\.a has loss or group_size, which stage=retromae does not read$"):
        composed(with_loss, stage="retromae")
    config.compose(["stage=check", "data=mixture", with_loss])
    with pytest.raises(ValueError, match=r"^data\.sources is missing: add data\.sources=VALUE, a mapping"):
        composed()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["batch_tokens=100"], "batch_tokens=100 needs length_buckets"),
        (["length_buckets=[128,64]"], "length_buckets=[128, 64] must rise"),
        (["length_buckets=[0]"], "length_buckets must be a list, each item a whole number above 0"),
    ],
)
def test_length_buckets_rise_and_a_budget_of_tokens_needs_them(keys, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        config.compose(["stage=pairs", "model=tiny", *keys])
