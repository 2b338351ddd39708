"""What one row tells by itself: pure functions over its texts."""

import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from bgetrain.sources import Row

REPLACEMENT = "\ufffd"
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # C0 and C1 but tab, line feed and carriage return
TAGS = "a|b|br|code|div|em|h[1-6]|i|img|li|ol|p|pre|script|span|strong|style|sub|sup|table|td|th|tr|u|ul"
HTML = re.compile(rf"</?(?:{TAGS})(?:\s[^<>]*)?/?>|&(?:nbsp|amp|lt|gt|quot|apos|#\d{{2,5}}|#x[0-9a-f]{{2,5}});", re.I)
WIDE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")  # kana, hanzi, hangul
LETTERS_PER_TOKEN = 4.0  # of English text under BERT's vocabulary and GPT's alike; a rule of thumb


def normalised(text: str) -> str:
    """The text by which two are held equal: case-folded, each run of whitespace one blank, none at the ends."""
    return " ".join(text.casefold().split())


def digest(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(blake2b(text.encode("utf8", "surrogatepass"), digest_size=8).digest(), "little")


def combined(numbers: Sequence[int], more: str = "") -> int:
    """64 bits of a list of digests and a text."""
    joined = b"".join(number.to_bytes(8, "little") for number in numbers)
    return int.from_bytes(blake2b(joined + more.encode(), digest_size=8, salt=b"combined").digest(), "little")


def identity(row: Row) -> tuple[int, int, int]:
    """Digests of a row's query, of the set of its positives, and of all of it but scores."""
    query, positives = digest(row.query), [digest(each) for each in row.positives]
    negatives = [digest(each) for each in row.negatives]
    whole = combined([query, len(positives), *positives, *negatives], repr(row.prompt))
    return query, combined(sorted(set(positives))), whole


def row_findings(row: Row, query: str, positives: Sequence[str], negatives: Sequence[str], instruction: str) -> Iterator[str]:
    """The kinds of `check_kinds` that a labelled row shows.

    Args:
        row: as it is.
        query: its query, normalised.
        positives: the same.
        negatives: the same.
        instruction: what is put before the query.
    """
    wanted, unwanted = set(positives), set(negatives)
    if query in wanted:
        yield "query_is_positive"
    if wanted & unwanted:
        yield "positive_is_negative"
    if len(wanted) < len(positives):
        yield "repeated_positive"
    if len(unwanted) < len(negatives):
        yield "repeated_negative"
    if instruction.strip() and query.startswith(normalised(instruction)):
        yield "instruction_twice"
    yield from text_findings([row.query, *row.positives, *row.negatives])


def text_findings(texts: Sequence[str]) -> Iterator[str]:
    """The kinds that texts show by their characters."""
    if any(REPLACEMENT in text for text in texts):
        yield "replacement_character"
    if any(CONTROL.search(text) for text in texts):
        yield "control_character"
    if any(("<" in text or "&" in text) and HTML.search(text) for text in texts):
        yield "html"


def estimated_tokens(text: str) -> int:
    """Tokens of a text where there is no tokenizer: a hanzi, kana or hangul is one, of other characters four are."""
    wide = sum(1 for _ in WIDE.finditer(text)) if not text.isascii() else 0
    return wide + round((len(text) - wide) / LETTERS_PER_TOKEN) + 2  # the special tokens at both ends


def excerpt(text: str) -> str:
    """The beginning of a text in one line, to be recognised by."""
    plain = " ".join(text.split())
    return plain if len(plain) <= 80 else f"{plain[:77]}..."
