"""What `config.compose` admits and what it says of the rest; the whole command line's answers are in test_errors.py."""

import re
import shlex

import pytest
from omegaconf import OmegaConf

from bgetrain import config, overrides, selection, usage
from bgetrain.target import fault, parse

FINETUNE = ["stage=finetune", "data=jsonl", "data.files=[a.jsonl]"]


def refusal(*arguments: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        config.compose(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def composed(*arguments: str) -> dict:
    return OmegaConf.to_container(config.compose([*FINETUNE, *arguments]), resolve=True)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("PositiveInt", [1, 10**12], [0, -1, 1.0, 1.5, True, "1", None]),
        ("NonNegativeInt", [0, 1], [-1, 0.0, False]),
        ("PositiveFloat", [1, 1e-9], [0, 0.0, -1.0, float("inf"), float("nan"), "1e-5", True]),
        ("NonNegativeFloat", [0, 0.0, 3.5], [-1e-9, float("inf")]),
        ("Ratio", [0, 1, 0.5], [-0.1, 1.1, "0.5", True]),
        ("bool", [True, False], [0, 1, "yes", None]),
        ("str", ["", "a"], [1, None, True]),
        ("str | None", ["a", None], [1]),
        ("'PositiveInt | None'", [1, None], [0]),
        ("Literal['a', 'b']", ["a", "b"], ["c", None, 1]),
        ("Negatives", ["world", "rank", "group"], ["all", None]),
        ("list[Ratio]", [[], [0.5, 1]], [[2], 0.5, "a", None]),
        ("tuple[Ratio, Ratio]", [[0.9, 0.999]], [[0.9], [0.9, 0.9, 0.9], [0.9, 2], 0.9]),
        ("dict[str, str]", [{}, {"a": "b"}], [[], "a", None]),
        ("SomeClass", [1, "a", None], []),
    ],
)
def test_values_are_held_against_the_annotation(annotation, good, bad):
    for value in good:
        assert fault(value, parse(annotation)) is None, value
    for value in bad:
        assert fault(value, parse(annotation)), value


def test_an_option_of_the_users_choice_drops_what_the_stage_says_of_its_own():
    assert "path" in composed()["model"]
    assert "path" not in composed("model=tiny")["model"]
    assert refusal(*FINETUNE, "model=tiny", "model.path=x").startswith("nothing reads model.path in stage=finetune data=jsonl")


def test_what_the_stage_says_of_any_option_stays():
    cfg = OmegaConf.to_container(config.compose(["stage=pairs", "data=beir", "data.path=x"]), resolve=True)
    assert cfg["data"]["passage_max_len"] == 128  # conf/stage/pairs.yaml; conf/data/beir.yaml has 256


@pytest.mark.parametrize(
    "typed", ["data.columns={query: question}", "data.columns.query=question", "+data.columns.query=question"]
)
def test_keys_of_a_mapping_are_the_users_own(typed):
    assert composed(typed)["data"]["columns"] == {"query": "question"}


def test_deepspeeds_keys_may_be_added_and_ours_may_not():
    added = composed("+engine.zero_optimization.overlap_comm=true", "+engine.wall_clock_breakdown=true")["engine"]
    assert (added["zero_optimization"], added["wall_clock_breakdown"]) == ({"stage": 1, "overlap_comm": True}, True)
    for key, ours in config.OURS.items():
        assert refusal(*FINETUNE, f"+engine.{key}=1") == f"engine.{key} is set by bgetrain: use {ours}"


def test_added_keys_that_nothing_reads_are_refused():
    for key in ("foo", "optim.foo", "foo.bar", "logger.foo", "optim.named_parameters"):
        assert refusal(*FINETUNE, f"+{key}=1").startswith(f"nothing reads {key.split('.')[0]}")
        assert refusal(*FINETUNE, f"++{key}=1").startswith(f"nothing reads {key.split('.')[0]}")


def test_keys_that_are_read_cannot_be_taken_away():
    for key in ("optim.lr", "optim", "logger", "seed", "model.path"):
        assert refusal(*FINETUNE, f"~{key}").startswith(f"~{key}: stage=finetune reads this key")


def test_values_of_all_kinds_arrive_as_typed():
    cfg = composed("data.files=[a.jsonl,'b c.jsonl']", "optim.betas=[0.8,0.9]", "epochs=0.5", "optim.lr=1e-5",
                   "model.tokenizer=null", "data.query_instruction='find: '", 'model.path="/x/a=b,c"',
                   "model.gradient_checkpointing=True")  # fmt: skip
    assert cfg["data"]["files"] == ["a.jsonl", "b c.jsonl"]
    assert cfg["optim"]["betas"] == [0.8, 0.9]
    assert (cfg["epochs"], cfg["optim"]["lr"], cfg["model"]["tokenizer"]) == (0.5, 1e-5, None)
    assert (cfg["data"]["query_instruction"], cfg["model"]["path"]) == ("find: ", "/x/a=b,c")
    assert cfg["model"]["gradient_checkpointing"] is True


@pytest.mark.parametrize("value", ["plain", "two words", " ends ", "a=b", "a,b", 'with "quotes"', "it's", "back\\slash",
                                   "end\\", 'q\\"q', "[x]", "${x", "", "é", "123", "null", "#", "a: b"])  # fmt: skip
def test_quoting_brings_a_text_through_hydras_grammar(value):
    text = overrides.quoted("model.path", value, always=value in ("123", "null"))
    assert overrides.value_of(text) == value


def test_the_remedy_that_a_message_proposes_works():
    message = refusal(*FINETUNE, "model.path=/x/a=b")
    remedy = re.search(r"quotes: '(.*)'$", message)[1]
    assert composed(remedy)["model"]["path"] == "/x/a=b"
    message = refusal(*FINETUNE, "data.query_instruction=query: ")
    assert composed(re.search(r"quotes: '(.*)'$", message)[1])["data"]["query_instruction"] == "query: "


def test_a_sweep_lists_every_combination_the_last_key_fastest():
    groups = {"data": ["jsonl", "text", "beir"]}
    assert overrides.jobs(["a=1,2", "b=x", "c='p q',r"], groups) == [
        ["a=1", "b=x", "c='p q'"], ["a=1", "b=x", "c=r"], ["a=2", "b=x", "c='p q'"], ["a=2", "b=x", "c=r"]]  # fmt: skip
    assert overrides.jobs(["seed=range(3)"], groups) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert overrides.jobs(["data=glob(*e*)"], groups) == [["data=text"], ["data=beir"]]
    with pytest.raises(ValueError, match="an interval has no list of values"):
        overrides.jobs(["a=interval(0,1)"], groups)
    with pytest.raises(ValueError, match="no values"):
        overrides.jobs(["data=glob(z*)"], groups)


def test_help_names_every_option_three_examples_and_every_flag():
    page = usage.text([])
    for group in selection.groups():
        for option in selection.options(group):
            assert f"  {group}={option} " in page
    examples = page.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 3
    assert max(map(len, page.splitlines())) <= 120
    for flag in ("--help", "--cfg job", "-m", "--shell-completion", "--version"):
        assert flag in page


def test_the_examples_of_the_help_page_compose():
    for line in usage.INTRODUCTION.partition("Examples:\n")[2].splitlines():
        arguments = shlex.split(line)[1:]
        if arguments and not arguments[0].startswith("recipe="):
            config.compose(arguments)


@pytest.mark.parametrize("stage", selection.options("stage"))
def test_the_page_of_a_stage_shows_every_key_as_one_types_it_with_its_comment(stage):
    page = usage.text([f"stage={stage}"])
    cfg = config.compose([f"stage={stage}"], missing=True)
    for key, value in selection.flatten(cfg):
        if not isinstance(value, dict) and not key.endswith("_target_") and not key.startswith("stage.") and key.count(".") < 2:
            assert re.search(rf"^  {re.escape(key)}=", page, re.M), key
    assert re.search(r"^  seed=42", page, re.M)
    if stage == "finetune":
        line = next(line for line in page.splitlines() if line.startswith("  global_batch="))
        assert line.startswith("  global_batch=256 ")
        assert "queries per step over all ranks" in line
    assert max(map(len, page.splitlines())) <= 120
    shown = dict(re.findall(r"^  ([\w.]+)=(\S+)", page, re.M))
    assert shown["num_processes"] == ("1" if stage in ("check", "split") else "null")


def test_the_page_of_a_stage_shows_overrides_and_what_is_missing():
    page = usage.text(["stage=finetune", "data=jsonl", "optim=sgd", "optim.lr=0.5"])
    assert re.search(r"^  data.files=\?\?\?$", page, re.M)
    assert re.search(r"^  optim.lr=0.5$", page, re.M)
    assert "optim=sgd: Plain SGD" in page
