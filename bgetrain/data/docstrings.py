"""One file of Python source to documented definitions: a docstring's first sentence, and the code that it describes."""

import ast
import gc
import hashlib
import inspect
import re
import tokenize
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

MIN_WORDS, MAX_WORDS = 4, 40
MIN_LETTERS_RATIO = 0.85  # of letters and spaces in a sentence; below it formulas, signatures and tables begin
ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:`[~!.]?([^`<]*?)(?:\s*<[^`>]*>)?`")  # :class:`~a.B`, :ref:`text <target>`
LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
# where a first paragraph without an empty line after it turns into something else
SECTION = re.compile(r"\n\s*(?:[:@>|.*=~^-]|\d+[.)]|[A-Z][\w ]*:\s*(?:\n|$)|[A-Z]\w+\n\s*[-=]{3})")
SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\betc)(?<!\b[A-Z])[.!?](?=\s+[\"'(\[]?[A-Z])")
NO_DESCRIPTION = re.compile(
    r"^[^\w\"'(]|^\w[\w.]*\(.*\)|\bdeprecat|\bdo not (?:edit|use)\b|\bcopyright\b|\btodo\b|\bfixme\b|>>>|:math:|\\"
    r"|^\w+ \((?:torch\.|.*\boptional\b)"  # an argument's line: size (int, optional, defaults to 2)
    r"|^(?:this is )?(?:the )?(?:see|refer to|same|like|alias|equivalent|overrid\w*|inherit\w*|tests?)\b",
    re.IGNORECASE,
)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BLOCKS = (*DEFINITIONS, ast.If, ast.For, ast.While, ast.With, ast.Try, ast.ExceptHandler)


class Pair(NamedTuple):
    """A documented definition; docstring and text are cut at max_characters."""

    title: str  # 'module.Class.method'
    file: str  # below the folder where it is installed: 'package/module.py'
    line: int  # where the definition begins in its file, from 1
    sentence: str
    text: str  # signature and body without any docstring
    docstring: str
    keys: tuple[bytes, ...]  # digests of sentence, body and text; two pairs that share one are duplicates


def read_chunk(sources: list[tuple[str, str]], max_characters: int) -> tuple[list[Pair], int]:
    """Reads the documented definitions of several files.

    Args:
        sources: (path under its root, path) of each.
        max_characters: where passages and docstrings are cut.

    Returns:
        the pairs, and how many files could not be read or parsed.
    """
    pairs, num_skipped = [], 0
    collecting = gc.isenabled()
    gc.disable()  # the collector walks each growing tree many times and finds nothing to free
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escapes and comparisons
            for relative, path in sources:
                try:
                    pairs += _read_file(Path(path), relative, max_characters)
                # all that open, decode and ast.parse raise on broken files and on those for other versions of Python
                except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                    num_skipped += 1
    finally:
        if collecting:
            gc.enable()
    return pairs, num_skipped


def _read_file(path: Path, relative: str, max_characters: int) -> list[Pair]:
    content = path.read_bytes()
    if b'"""' not in content and b"'''" not in content:
        return []
    encoding, _ = tokenize.detect_encoding(BytesIO(content).readline)
    # not splitlines(): it also splits at characters that may stand inside a string
    lines = content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # a docstring that shares a line with code cannot be cut out by lines
    documented = [
        (title, node, docstring, place)
        for title, node, docstring, place in _documented(ast.parse("\n".join(lines)), dotted(relative))
        if lines[place.stop - 1].rstrip().endswith(('"', "'"))
    ]
    # all at once: a class that quoted the docstrings of its methods would answer their queries
    for *_, place in documented:
        lines[place.start : place.stop] = [""] * len(place)
    pairs = []
    for title, node, docstring, place in documented:
        # an escape such as \ud800 in a docstring is half a character, which no tokenizer takes
        written = inspect.cleandoc(docstring.encode("utf-8", "replace").decode())
        sentence = first_sentence(written)
        if sentence is None or all(_is_trivial(statement) for statement in node.body):
            continue
        signature = _dedent(lines[node.lineno - 1 : place.start], node.col_offset)
        body = _dedent(lines[place.stop : node.end_lineno], node.col_offset)
        text = f"{signature}\n{body}"[:max_characters].rstrip()
        keys = tuple(digest("".join(key.casefold().split())) for key in (sentence, body, text))
        pairs.append(Pair(title, relative, node.lineno, sentence, text, written[:max_characters], keys))
    return pairs


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, Definition, str, range]]:
    """Yields qualified name, definition, docstring and its lines, from 0."""
    # blocks only: expressions are most of a tree
    stack: list[tuple[ast.AST, str]] = [(tree, module)]
    while stack:
        block, name = stack.pop()
        if isinstance(block, DEFINITIONS):
            name = f"{name}.{block.name}"
            first = getattr(block.body[0], "value", None)
            if isinstance(block.body[0], ast.Expr) and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield name, block, first.value, range(first.lineno - 1, first.end_lineno or first.lineno)
        for field in ("body", "orelse", "handlers", "finalbody"):
            stack += [(child, name) for child in getattr(block, field, ()) if isinstance(child, BLOCKS)]


def _is_trivial(statement: ast.stmt) -> bool:
    """Whether a statement does nothing: pass, `...`, a string or raise NotImplementedError."""
    if isinstance(statement, ast.Raise):
        error = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(error, ast.Name) and error.id == "NotImplementedError"
    is_constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_constant or isinstance(statement, ast.Pass)


def _dedent(lines: list[str], indent: int) -> str:
    return "\n".join(line[indent:] if line[:indent].isspace() else line for line in lines if line.strip())


def first_sentence(docstring: str) -> str | None:
    """Takes the first sentence of a docstring as plain words; None where that is no description."""
    paragraph = re.split(r"\n[ \t]*\n", docstring.strip(), maxsplit=1)[0]
    paragraph = SECTION.split(paragraph, maxsplit=1)[0]
    text = LINK.sub(r"\1", ROLE.sub(r"\1", paragraph)).replace("`", "").replace("**", "")
    text = SENTENCE_END.split(" ".join(text.split()), maxsplit=1)[0].rstrip(" .;,")
    num_words = sum(any(character.isalpha() for character in word) for word in text.split())
    num_letters = sum(character.isalpha() or character == " " for character in text)
    if not MIN_WORDS <= num_words <= MAX_WORDS or num_letters < MIN_LETTERS_RATIO * len(text):
        return None
    # a colon at the end leads to a list that is not there, an open bracket to the rest of a cut sentence
    is_cut = text.endswith(":") or text.count("(") != text.count(")")
    return None if is_cut or NO_DESCRIPTION.search(text) else text


def dotted(relative: str) -> str:
    """`package/module.py` -> `package.module`."""
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
