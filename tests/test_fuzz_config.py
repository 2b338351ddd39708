"""Overrides of every kind that people and programs type: a valid config or one line, within seconds, whatever they are.

`FUZZ=5000 pytest tests/test_fuzz_config.py` draws more of them.
"""

import os
import time

import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bgetrain import config, overrides, selection

FUZZ = int(os.environ.get("FUZZ", "0"))
SECONDS = 10.0  # of processor time that one answer may take
QUIET = list(HealthCheck)


def at_most(examples: int) -> settings:
    """The suite's examples are the same every time; those of a long run are not."""
    return settings(
        max_examples=FUZZ or examples, derandomize=not FUZZ, deadline=None, database=None, suppress_health_check=QUIET
    )


def near(name: str, draw: st.DrawFn) -> str:
    """A name with a letter more, less, doubled or in another case."""
    place = draw(st.integers(0, len(name) - 1))
    with_one = name[:place] + draw(st.sampled_from("aZ_.-/@=+~0é\u200b")) + name[place:]
    return draw(st.sampled_from([name, name, name, with_one, name[:place] + name[place + 1 :], name.upper(), f"{name}.x"]))


KEYS = sorted(
    {
        key
        for stage in ("finetune", "retromae", "mine", "filter", "check")
        for key, _ in selection.flatten(config.compose_unchecked([f"stage={stage}"]))
    }
)
OPTIONS = [f"{group}={option}" for group in selection.groups() if group != "stage" for option in selection.options(group)]
ODD = [
    "", " ", "null", "true", "False", "nan", "inf", "-inf", "-0", "0x10", "1_000", "1e400", "9" * 400, "1e-400", "0o7", "- 1",
    "${seed}", "${output_dir}", "${${seed}}", "${oc.env:HOME}", "${oc.env:NO_SUCH_NAME}", "${oc.decode:abc}", "${", "}", "${}",
    "${.lr}", "${..seed}", "${optim}", "${optim.lr}", "${missing:1}", "\\${seed}", "???", "'", '"', "\\", "\\'", "''", '""',
    "[", "]", "[]", "[[", "[[]]", "{", "}", "{}", "{a:b}", "{a:{b:{c:[1,{d:e}]}}}", "[1,2", "a,b", ",", "1,2,3", "[a,]", "(",
    "range(3)", "range(1,1e9)", "range(0)", "glob(*)", "choice(a,b)", "interval(1,2)", "sort(3,1)", "shuffle(1,2)", "int(3.7)",
    "str(1)", "json_str([1])", "cast(1)", "float(x)", "bool(2)", "extend_list(1)", "a=b", "a:b", "@x", "#x", "$x", "!x", "a b",
    "\x00", "\n", "\r\n", "a\nb", "\t", "\ufeff", "\u202e", "é", "日本", "🙂", "\ud800", "~", "+", "-", "--", "*", "%s", "{0}",
    "&a", "*a", "!!python/object:os.system", "__import__('os')", "../../x", "/dev/null", "os.system", "builtins.eval",
]  # fmt: skip
TARGETS = ["os.system", "bgetrain.cli.main", "bgetrain.loss.info_nce.nothing", "nothing", "", "bgetrain", "a.b.c", "3", ".", ".."]


@st.composite
def value(draw: st.DrawFn) -> str:
    """A value as one might type it."""
    one = st.one_of(
        st.sampled_from(ODD),
        st.integers(-(10**30), 10**30).map(str),
        st.integers(-2, 4).map(str),
        st.floats().map(str),
        st.text(max_size=12),
        st.text("[]{}(),:='\"\\$ ab1.-+~", max_size=14),
    )
    nested = st.recursive(one, lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"), max_leaves=4)
    mapping = st.lists(st.tuples(st.sampled_from(["a", "lr", "_target_", "0", "x.y", ""]), one), max_size=3)
    return draw(st.one_of(nested, mapping.map(lambda items: f"{{{','.join(f'{key}:{each}' for key, each in items)}}}")))


@st.composite
def override(draw: st.DrawFn) -> str:
    """One argument: mostly a key that is near a real one, and a value."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.text(max_size=20), st.sampled_from(OPTIONS), st.sampled_from(ODD)))
    key = near(draw(st.sampled_from([*KEYS, *selection.groups(), "hydra.run.dir", "_target_", "defaults", "x"])), draw)
    prefix = draw(st.sampled_from(["", "", "", "", "+", "++", "~", "-"]))
    if key.endswith("_target_"):
        return f"{prefix}{key}={draw(st.one_of(st.sampled_from(TARGETS), value()))}"
    return f"{prefix}{key}{draw(st.sampled_from(['=', '=', '=', '=', '', '==', ' = ']))}{draw(value())}"


def answered(call, *arguments):
    """What it returns, or the one line of its ValueError."""
    began, found, said = time.process_time(), None, "nothing"
    try:
        found = call(*arguments)
    except UnicodeError as error:
        raise AssertionError("no word of ours") from error
    except ValueError as error:
        said = str(error)
    own_line = "\n" not in said or "\n" in "".join(map(str, arguments[0]))  # the command line folds what was typed
    assert own_line, said
    assert said.strip()
    assert time.process_time() - began < SECONDS
    return found


@example(["stage=finetune", "a" * 100_000 + "=3"])
@given(st.lists(override(), min_size=1, max_size=3))
@at_most(300)
def test_the_grammar_reads_an_override_or_says_so_in_one_line(typed):
    answered(overrides.parse, typed)
    answered(overrides.jobs, [each for each in typed if "range" not in each], {})


@example(["+optim.lr.x=3"])
@example(["optim.lr=${optim.lr}"])
@example(["optim={lr:${optim}}"])
@example(["stage={_target_:os.system,name:finetune}"])
@given(st.lists(override(), min_size=1, max_size=3))
@seed(1)
@at_most(25)
def test_composing_gives_a_valid_config_or_one_line(typed):
    cfg = answered(config.compose, ["stage=finetune", *typed])
    if cfg is not None:
        plain = answered(lambda made: OmegaConf.to_container(made, resolve=True), cfg)
        assert isinstance(plain, dict)
        assert plain["stage"]["_target_"] == "bgetrain.stage.contrastive.run"


@pytest.mark.parametrize("stage", ["retromae", "mine", "check", "filter", "tokenizer", "evaluate"])
def test_every_stage_answers_an_odd_value_of_a_key_of_its_own(stage):
    """Each stage's first key of its own takes a few odd values."""
    own = [key for key, _ in selection.flatten(config.compose_unchecked([f"stage={stage}"])) if not key.startswith("stage")]
    for number, odd in enumerate(["[[", "${nothing}"]):
        answered(config.compose, [f"stage={stage}", f"{own[-1 - number]}={odd}"])


# Not among the examples above: hypothesis lets a test recurse deeper than the command line may.
PAIRS = [("[", "]"), ("{a:", "}"), ("int(", ")"), ("${", "}")]
DEEP = [left * many + "x" + right * many for left, right in PAIRS for many in (15, 40, 5000)]


@pytest.mark.parametrize("odd", [*DEEP, "[" * 5000, "x" * 100_000], ids=lambda odd: f"{odd[:5]}*{len(odd)}")
def test_what_is_nested_without_end_is_one_line(odd):
    assert answered(config.compose, ["stage=finetune", f"optim.lr={odd}"]) is None


def test_brackets_in_quotes_are_text():
    text = "[" * 100
    assert config.compose(["stage=finetune", f"data.query_instruction='{text}'"]).data.query_instruction == text
