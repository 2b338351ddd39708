"""What a model was trained to read before queries and passages."""

from collections.abc import Mapping
from typing import NamedTuple

from bgetrain.model import folder
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
    return chosen(folder.facts(file.parent).prompts if file else {})


def chosen(known: Mapping[str, str]) -> Prompts:
    """What sentence-transformers takes of a folder's prompts: for documents the first name that is there, be it empty."""
    return Prompts(known.get("query", ""), next((known[name] for name in PASSAGE_NAMES if name in known), ""))
