"""What a model was trained to read before queries and passages."""

import json
from typing import NamedTuple

from bgetrain.model.pooling import file_of

PASSAGE_NAMES = ("document", "passage", "corpus")  # in the order of SentenceTransformer.encode_document


class Prompts(NamedTuple):
    """Texts put before queries and before passages; empty where there are none."""

    query: str
    passage: str


def prompts_of(path: str) -> Prompts:
    """What `config_sentence_transformers.json` of a folder or hub id says.

    Raises:
        ValueError: a file that cannot be reached or is not of that form.
    """
    file = file_of(path, "config_sentence_transformers.json")
    try:
        known = (json.loads(file.read_text("utf8")).get("prompts") or {}) if file else {}
        found = [next((known[name] for name in names if known.get(name)), "") for names in (("query",), PASSAGE_NAMES)]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    if not all(isinstance(each, str) for each in found):
        raise ValueError(f"{file}: 'prompts' must be texts, got {found}")
    return Prompts(*found)
