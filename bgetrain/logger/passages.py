"""Found passages on a terminal: each cut to a few lines around the words of the query, which are highlighted."""

import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.text import Text

LINES = 3  # of a passage
LOOKED_AT = 20_000  # letters of a passage in which the query's words are looked for
PLACES = 200  # words of a passage that a cut may begin before
NEAR = 20  # letters that a cut moves back to begin with a word
NARROWEST, UNKNOWN_WIDTH = 30, 100  # columns: fewer are not filled; of what is no terminal
INDENT = 6
# of others' texts, which could steer a terminal
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
WORD = re.compile(r"[^\W_]+")
HUMP = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # parts of readCSVFile
# scripts without spaces between words: Thai and Lao, Myanmar, Khmer, kana, Chinese
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# English words that say nothing of what is looked for; our choice
COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by can do does for from how i if in into is it its me my of on or that the this to was what when "
        "where which who why with you",
    )
)


class Hit(NamedTuple):
    """A passage that was found.

    Attributes:
        score: the inner product with the query.
        where: `FILE:LINE` or a name.
        text: the whole passage.
    """

    score: float
    where: str
    text: str


class Span(NamedTuple):
    """A word in a text: where it stands, and its form for comparison."""

    start: int
    stop: int
    word: str


def spans(text: str) -> Iterator[Span]:
    """The words of a text, those of an identifier one by one; of scripts without spaces each letter."""
    for whole in WORD.finditer(text):
        begin = whole.start()
        for piece in pieces(whole[0]):
            yield Span(begin, begin + len(piece), piece.casefold())
            begin += len(piece)


def pieces(word: str) -> list[str]:
    if word.isascii():
        return HUMP.findall(word)
    return [each for each in re.split(f"({UNSPACED.pattern})", word) if each]


def asked(query: str) -> list[str]:
    """The words of a query that are looked for in passages; of letters of unspaced scripts, each two in a row."""
    found = list(spans(query))
    words = [each.word for each in found if not UNSPACED.match(each.word)]
    letters = [each for each in found if UNSPACED.match(each.word)]
    pairs = [one.word + two.word for one, two in itertools.pairwise(letters) if one.stop == two.start]
    kept = [word for word in words if word not in COMMON] or words
    return list(dict.fromkeys([*kept, *(pairs or [each.word for each in letters])]))


@lru_cache(maxsize=65_536)
def alike(one: str, other: str) -> bool:
    """Whether two words are the same but for their ends: file and files, parse and parsing."""
    if one == other:
        return True
    least = max(4, min(len(one), len(other)) - 1)
    return min(len(one), len(other)) >= 4 and one[:least] == other[:least] and abs(len(one) - len(other)) <= 4


def matches(text: str, words: Sequence[str]) -> list[Span]:
    """Where words of the query stand in a text; `word` is that of the query."""
    found: list[Span] = []
    before = None
    for span in spans(text[:LOOKED_AT]):
        if UNSPACED.match(span.word):
            if span.word in words:
                found.append(span)
            if before and before.stop == span.start and before.word + span.word in words:
                found.append(Span(before.start, span.stop, before.word + span.word))
            before = span
            continue
        before = None
        same = next((word for word in words if alike(word, span.word)), None)
        if same is not None:
            found.append(Span(span.start, span.stop, same))
    return found


def excerpt(text: str, words: Sequence[str], columns: int) -> Text:
    """The part of a text that holds most of a query's words, as wide as asked, the words in bold.

    Args:
        text: in one line.
        words: of `asked`.
        columns: of a terminal, of which a Chinese letter takes two.
    """
    found = matches(text, words)
    start = best_start(text, found, columns)
    marked = Text(text[start : start + columns])
    for span in found:
        if start <= span.start and span.stop <= start + columns:
            marked.stylize("bold yellow", span.start - start, span.stop - start)
    before, behind = "" if not start else "\u2026 " if text[start - 1] == " " else "\u2026", " \u2026"
    if cell_len(before) + cell_len(marked.plain) > columns or start + len(marked) < len(text):
        room = columns - cell_len(before) - cell_len(behind)
        kept = chop_cells(marked.plain, room)[0] if marked.plain else ""
        cut = kept.rfind(" ")
        if cut > len(kept) // 2:
            return Text(before) + marked[:cut] + Text(behind)
        return Text(before) + marked[: len(kept)] + Text(behind.strip())
    return Text(before) + marked


def best_start(text: str, found: Sequence[Span], columns: int) -> int:
    """Where a cut of so many columns begins that has most of the words, different ones first; 0 where that is as good."""
    best, chosen = (0, 0), 0
    width = columns if text[:columns].isascii() else columns // 2
    starts = [0, *(word_start(text, max(0, span.start - width // 6)) for span in found[:PLACES])]
    for start in dict.fromkeys(starts):
        inside = [span.word for span in found if start <= span.start and span.stop <= start + width]
        worth = (len(set(inside)), min(len(inside), 2 * len(set(inside))))
        if worth > best:
            best, chosen = worth, start
    return chosen


def word_start(text: str, place: int) -> int:
    """Where a word begins at or shortly before `place`; in scripts without spaces, `place`."""
    space = text.rfind(" ", max(0, place - NEAR), place)
    return space + 1 if space >= 0 else 0 if place < NEAR else place


def show(title: str, query: str, hits: Sequence[Hit]) -> None:
    """Prints to stdout each passage's rank, score and place, and its text cut around the query's words.

    On a terminal it is as wide as that and in colours; else plain, and as wide as COLUMNS says, or 100.
    """
    on_terminal = sys.stdout.isatty()
    width = max(NARROWEST, shutil.get_terminal_size((UNKNOWN_WIDTH, 24)).columns)
    console = Console(file=sys.stdout, width=width, highlight=False, force_terminal=on_terminal, legacy_windows=False)
    words = asked(query)
    lines = [Text(plain(title), style="bold")]
    for rank, hit in enumerate(hits, 1):
        head = Text(f"{rank:>{INDENT - 2}}  ") + Text(f"{hit.score:.4f}", style="green") + Text("  ")
        lines.append(head + Text(from_the_end(plain(hit.where), width - cell_len(head.plain)), style="cyan"))
        lines += [Text(" " * INDENT) + line for line in paragraph(plain(hit.text), words, width - INDENT, console)]
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True, markup=False, emoji=False)
    sys.stdout.flush()


def plain(text: str) -> str:
    """A text in one line, without what a terminal would obey."""
    return CONTROL.sub("\ufffd", " ".join(text.split()))


def paragraph(text: str, words: Sequence[str], columns: int, console: Console) -> list[Text]:
    """The part of a text that holds most of the words, in at most `LINES` lines of so many columns."""
    lines: list[Text] = []
    for room in range(LINES * columns, columns, -max(1, columns // 8)):  # lines end with words, which leaves some unfilled
        lines = list(excerpt(text, words, room).wrap(console, columns))
        if len(lines) <= LINES:
            break
    return lines


def from_the_end(where: str, columns: int) -> str:
    """A place, cut at its beginning where it is too wide: the file's name and line stay."""
    if cell_len(where) <= columns:
        return where
    return "\u2026" + set_cell_size(where[::-1], columns - 1).rstrip()[::-1]


def as_json(query: str, hits: Sequence[Hit]) -> None:
    """Prints to stdout one line: an object with the query and its passages, whole."""
    found = [{"rank": rank, **hit._asdict()} for rank, hit in enumerate(hits, 1)]
    print(json.dumps({"query": query, "passages": found}, ensure_ascii=False), flush=True)
