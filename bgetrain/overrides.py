"""The grammar of overrides, `key=value`, which is Hydra's: reading, quoting, sweeps, and what to say of what it is not."""

import itertools
import re
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from bgetrain import selection

KEY = re.compile(r"(\+\+|\+|~)?[A-Za-z_][\w-]*([./@][\w-]+)*")
PLAIN = re.compile(r"[A-Za-z0-9_./~+\\-]+")  # values that need no quotes and are text or number alike
QUOTED = re.compile(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""", re.DOTALL)
TYPED = ("query",)  # keys whose value is a text as it was typed, unless it begins as a list or in quotes
LONGEST = 200  # characters of what was typed that a message repeats
DEEPEST = 20  # brackets within brackets of a value; Hydra's parser and OmegaConf call themselves for each


def parse(overrides: Sequence[str]) -> list[Override]:
    """Reads each override by Hydra's grammar.

    Raises:
        ValueError: an argument that is no `key=value`, a value whose spaces at the ends would be lost, or one of more than
            `DEEPEST` brackets within brackets.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        key, _, value = text.partition("=")
        if depth(value) > DEEPEST:
            raise ValueError(f"{shortened(key)}: brackets stand within brackets at most {DEEPEST} deep, got {depth(value)}")
        try:
            each = parser.parse_override(as_text(text))
        except (HydraException, ValueError) as error:  # a number of thousands of digits is Python's to refuse
            raise ValueError(unreadable(text)) from error
        if not each.key_or_group:
            raise ValueError(unreadable(text))
        if value != value.strip() and key not in TYPED:
            raise ValueError(f"{text!r}: spaces at the ends of a value are kept only inside quotes: {in_shell(key, value)}")
        parsed.append(each)
    return parsed


def depth(value: str) -> int:
    """How many brackets of a value are open at once, at the most; those in quotes are text."""
    found = deepest = 0
    for each in QUOTED.sub("", value):
        found = found + 1 if each in "[{(" else max(0, found - 1) if each in "]})" else found
        deepest = max(deepest, found)
    return deepest


def shortened(text: str) -> str:
    """What was typed, so that the line that tells of it can be read."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def as_text(override: str) -> str:
    """Quotes a value such as skip(3), in which Hydra would see a call of a function of its own, and a text for people."""
    key, equals, value = override.partition("=")
    if equals and key in TYPED and value != "null" and not value.startswith(("[", "'", '"')):
        return quoted(key, value, always=True)
    return quoted(key, value) if re.fullmatch(r"skip\(.*\)", value) else override


def single(parsed: Sequence[Override]) -> None:
    """Refuses lists of values, which a sweep alone understands.

    Raises:
        ValueError: an override with several values.
    """
    for each in parsed:
        if each.is_sweep_override():
            text = str(each.input_line)
            key, _, value = text.partition("=")
            raise ValueError(
                f"{text} has several values: add -m to run each in turn, write {key}=[{value}] for one list, "
                f"or quote one text: {in_shell(key, value)}"
            )


def unreadable(text: str) -> str:
    """Says of an argument that is no override what it should be."""
    text = shortened(text)
    key, equals, value = text.partition("=")
    if text.startswith("-"):
        example = f": {key.lstrip('-')}{equals}{value}" if equals else ""
        return f"unknown flag {key}: keys are written key=value, without dashes{example}; `bgetrain --help` lists the flags"
    if not equals:
        groups = [group for group in selection.groups() if text in selection.options(group)]
        recipe = ["recipe"] if (selection.RECIPES / f"{text}.yaml").is_file() else []
        if groups or recipe:
            return (
                f"cannot read {text!r}: write key=value; did you mean {' or '.join(f'{key}={text}' for key in groups + recipe)}?"
            )
        return f"cannot read {text!r}: write key=value; a value with spaces goes in quotes: {in_shell('key', 'two words')}"
    if not KEY.fullmatch(key):
        return f"cannot read {text!r}: {key!r} is no key; write key=value, such as optim.lr=1e-5, with no space around ="
    return f"cannot read {text!r}: a value with symbols goes in quotes: {in_shell(key, value)}"


def in_shell(key: str, value: str) -> str:
    """How one types a text value so that both shell and Hydra leave it whole."""
    return shlex.quote(quoted(key, value, always=True))


def quoted(key: str, value: str, *, always: bool = False) -> str:
    """`key=value`, with Hydra's quotes around a value that has spaces or symbols."""
    if PLAIN.fullmatch(value) and not always:
        return f"{key}={value}"
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)  # a backslash is itself but before a quote
    escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return f'{key}="{escaped}"'


def jobs(overrides: Sequence[str], options: dict[str, Collection[str]]) -> list[list[str]]:
    """Expands `a=1,2 b=range(3)` into the overrides of each job, the last key varying fastest.

    Args:
        overrides: with lists of values, ranges or globs.
        options: of each group its options, for `data=glob(*)`.

    Raises:
        ValueError: an override that cannot be read or listed.
    """
    choices: list[list[str]] = []
    for each, text in zip(parse(overrides), overrides, strict=True):
        key, value = each.get_key_element(), each.value()
        if not each.is_sweep_override():
            choices.append([text])
        elif isinstance(value, Glob):
            choices.append([f"{key}={name}" for name in value.filter(list(options.get(each.key_or_group, ())))])
        elif each.is_discrete_sweep():
            choices.append([f"{key}={item}" for item in each.sweep_string_iterator()])
        else:
            raise ValueError(f"{text}: an interval has no list of values; write them out, or range(1,4)")
        if not choices[-1]:
            raise ValueError(f"{text}: no values; write some out, such as {key}=a,b")
    return [list(job) for job in itertools.product(*choices)]


def value_of(override: str) -> Any:
    """The value of one override as Hydra understands it."""
    return parse([override])[0].value()
