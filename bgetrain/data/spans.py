"""Documents as spans of token ids: nothing is cut away."""

from pathlib import Path
from typing import Any, Literal

from bgetrain.data.texts import Tokens
from bgetrain.sources import Texts
from bgetrain.types import NonNegativeInt


def spans(
    texts: Texts,
    tokenizer: Any,
    max_len: int,
    folder: Path,
    *,
    cut: Literal["truncate", "sentences", "tokens"],
    across: bool,
    num_workers: NonNegativeInt,
) -> Tokens:
    """Texts as they are trained on."""
    raise NotImplementedError
