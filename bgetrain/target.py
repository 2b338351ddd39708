"""`_target_` of a config node: its function, and its signature read from source.

A config can thus be checked without importing what it names: `bgetrain.loss.info_nce` imports torch, which takes seconds,
and a typing mistake should be answered at once.
"""

import ast
import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# The aliases of types.py: what a value must be, in words and as a test.
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "PositiveInt": ("a whole number above 0", lambda x: is_int(x) and x > 0),
    "NonNegativeInt": ("a whole number, 0 or above", lambda x: is_int(x) and x >= 0),
    "PositiveFloat": ("a number above 0", lambda x: is_number(x) and x > 0),
    "NonNegativeFloat": ("a number, 0 or above", lambda x: is_number(x) and x >= 0),
    "Ratio": ("a number from 0 to 1", lambda x: is_number(x) and 0 <= x <= 1),
    "int": ("a whole number", lambda x: is_int(x)),
    "float": ("a number", lambda x: is_number(x)),
    "bool": ("true or false", lambda x: isinstance(x, bool)),
    "str": ("text", lambda x: isinstance(x, str)),
    "Path": ("a path", lambda x: isinstance(x, str)),
    "Any": ("anything", lambda x: True),
}
LISTS, MAPPINGS = ("list", "tuple", "Sequence"), ("dict", "Mapping")


class Signature(NamedTuple):
    """Parameters of a function as its source has them.

    Attributes:
        parameters: name -> annotation, None where there is none.
        open_ended: True where the function takes `**names` as well.
        positional: those before the `*`, which the caller gives and no YAML does.
    """

    parameters: dict[str, ast.expr | None]
    open_ended: bool
    positional: list[str]


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse(text: str) -> ast.expr:
    """Turns `"PositiveInt | None"` into the expression that `fault` reads."""
    return ast.parse(text, mode="eval").body


def named(target: str) -> Any:
    """`package.module.function` -> the function.

    Raises:
        ValueError: the module has no such function, or has it from another package.
    """
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found) or str(getattr(found, "__module__", "")).partition(".")[0] != module.partition(".")[0]:
        raise ValueError(f"_target_={target!r}: {module} defines no function {name!r}")
    return found


def call(node: Mapping[str, Any], *values: Any, **more: Any) -> Any:
    """Calls the `_target_` of a node with the node's other keys and what the caller adds."""
    keys = {key: value for key, value in node.items() if key != "_target_"}
    return named(node["_target_"])(*values, **keys, **more)


@cache
def signature(target: str) -> Signature | None:
    """Reads the signature of `package.module.function` from its file.

    Packages above the module are imported: config.py asks only for what `trust.check_targets` has let pass.

    Returns:
        None where the source is not at hand or `target` is no plain function; its keys are then checked on the call.

    Raises:
        ValueError: the module or the function does not exist.
    """
    module, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise ValueError(f"_target_={target!r}: there is no module {module!r}")
    if not spec.origin or not spec.origin.endswith(".py"):
        return None
    body = ast.parse(Path(spec.origin).read_text("utf8")).body
    found = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
    if not found:
        raise ValueError(f"_target_={target!r}: {spec.origin} has no function {name!r}")
    if not isinstance(found[-1], ast.FunctionDef):
        return None
    arguments = found[-1].args
    before = [*arguments.posonlyargs, *arguments.args]
    parameters = {each.arg: each.annotation for each in [*before, *arguments.kwonlyargs]}
    return Signature(parameters, arguments.kwarg is not None, [each.arg for each in before])


def fault(value: Any, annotation: ast.expr | None) -> str | None:
    """Says what `value` must be, in words, where `annotation` does not admit it; None where it does.

    Annotations it cannot judge (classes of other packages) admit everything.
    """
    match annotation:
        case None:
            return None
        case ast.Constant(value=None):
            return None if value is None else "null"
        case ast.Constant(value=str() as text):
            return fault(value, parse(text))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            faults = [fault(value, left), fault(value, right)]
            return None if None in faults else " or ".join(text for text in faults if text)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            allowed = ast.literal_eval(choices)
            allowed = allowed if isinstance(allowed, tuple) else (allowed,)
            return None if value in allowed else " or ".join(map(str, allowed))
        case ast.Subscript(value=ast.Name(id=name), slice=item) if name in LISTS:
            return fault_of_items(value, item)
        case ast.Subscript(value=ast.Name(id=name)) | ast.Name(id=name) if name in MAPPINGS:
            return None if isinstance(value, dict) else "a mapping such as {name: value}"
        case ast.Name(id=name) if name in RANGES:
            words, admits = RANGES[name]
            return None if admits(value) else words
        case ast.Name(id=name) if name in aliases():
            return fault(value, aliases()[name])
    return None


def fault_of_items(value: Any, item: ast.expr) -> str | None:
    """As `fault`, for a list whose items are annotated `item`; `tuple[A, B]` has as many items as it names."""
    if not isinstance(value, list | tuple):
        return "a list such as [a, b]"
    elements = item.elts if isinstance(item, ast.Tuple) else [item]
    fixed = isinstance(item, ast.Tuple) and ast.unparse(elements[-1]) != "..."
    words = next((text for each in value if (text := fault(each, elements[0]))), None)
    if fixed and len(value) != len(elements):
        words = words or fault(object(), elements[0])
        return f"a list of {len(elements)} items, each {words}"
    return words and f"a list, each item {words}"


@cache
def aliases() -> dict[str, ast.expr]:
    """The `Name = Literal[...]` lines of types.py."""
    tree = ast.parse((Path(__file__).parent / "types.py").read_text("utf8"))
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Subscript)
    }
