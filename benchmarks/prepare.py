"""What all frameworks read: the rows, the vocabulary, the model; and how many tokens and operations a step holds."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Amount(NamedTuple):
    """What one step holds, padding left out.

    Attributes:
        texts: queries and passages.
        tokens: real tokens of all texts, special ones included.
        squares: sum of the squared lengths, which attention costs.
    """

    texts: int
    tokens: int
    squares: int


def read_pairs(folder: Path, kind: str) -> list[tuple[str, str]]:
    """(query, passage) of each training row.

    Args:
        folder: tldr in one language, as BEIR lays it out, with `pairs.jsonl.gz` beside.
        kind: pages: each training query of `qrels/train.tsv` with its page | pairs: each row of `pairs.jsonl.gz`, a line each.
    """
    if kind == "pairs":
        return [(row["query"], row["pos"][0]) for row in read_lines(folder / "pairs.jsonl.gz")]
    corpus = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in read_lines(folder / "corpus.jsonl.gz")}
    queries = {row["_id"]: row["text"] for row in read_lines(folder / "queries.jsonl.gz")}
    judged = [line.split("\t") for line in (folder / "qrels" / "train.tsv").read_text("utf8").splitlines()[1:]]
    return [(queries[query], corpus[passage]) for query, passage, _ in judged]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf8") as lines:
        yield from map(json.loads, lines)


def vocabulary(pairs: list[tuple[str, str]], words: int, folder: Path) -> Any:
    """A WordPiece tokenizer trained on all texts; written once."""
    from transformers import AutoTokenizer

    from bgetrain.data.tokenize import train_wordpiece

    if not (folder / "tokenizer.json").is_file():
        train_wordpiece([text for pair in pairs for text in pair], words, 512).save_pretrained(str(folder))
    return AutoTokenizer.from_pretrained(str(folder))


def model(folder: Path, tokenizer: Any, layers: int, width: int, dropout: float) -> Path:
    """A BERT with random weights, 64 dimensions a head, with its tokenizer; written once."""
    if not (folder / "model.safetensors").is_file():
        import torch
        from transformers import BertConfig, BertModel

        torch.manual_seed(1)
        shape: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // 64}
        shape |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = BertConfig(vocab_size=len(tokenizer), intermediate_size=4 * width, pad_token_id=tokenizer.pad_token_id, **shape)
        tokenizer.save_pretrained(str(folder))
        BertModel(config).save_pretrained(str(folder))
    return folder


def rows(
    path: Path, pairs: list[tuple[str, str]], tokenizer: Any, *, number: int, max_lens: tuple[int, int], group_size: int
) -> Amount:
    """Writes `number` rows drawn with a fixed seed, passages of other rows as negatives; repeats rows where there are too few.

    Args:
        path: .jsonl.
        pairs: (query, passage).
        tokenizer: of the models.
        number: of rows.
        max_lens: tokens of queries and of passages; longer texts are cut here, so that all frameworks read the same.
        group_size: passages per row.
    """
    draw = random.Random(1)
    order = [place for _ in range(-(-number // len(pairs))) for place in draw.sample(range(len(pairs)), len(pairs))][:number]
    queries = cut([pairs[place][0] for place in order], tokenizer, max_lens[0])
    others = [pairs[draw.randrange(len(pairs))][1] for _ in range(number * (group_size - 1))]
    passages = cut([*(pairs[place][1] for place in order), *others], tokenizer, max_lens[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf8") as lines:
        for place in range(number):
            first = number + place * (group_size - 1)
            row = {"query": queries[place], "pos": [passages[place]], "neg": passages[first : first + group_size - 1]}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    lengths = [len(ids) for ids in tokenizer([*queries, *passages])["input_ids"]]
    return Amount(len(lengths), sum(lengths), sum(length * length for length in lengths))


def cut(texts: list[str], tokenizer: Any, max_len: int) -> list[str]:
    """Each text as far as its first `max_len` tokens reach, special tokens counted."""
    ends = tokenizer(texts, truncation=True, max_length=max_len, return_offsets_mapping=True)["offset_mapping"]
    return [text[: max(end for _, end in spans)] for text, spans in zip(texts, ends, strict=True)]
