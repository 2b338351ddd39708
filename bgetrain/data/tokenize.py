"""Texts to ragged token ids, their cut into chunks, and a vocabulary for those who have none."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bgetrain.types import Chunk, Ragged

BLOCK = 1024  # texts tokenised at a time
PADDING, ENOUGH = 16, 8  # our choice: 6 % of padding is worth another forward pass of an eighth of the size
LONGEST_WORD = 8  # tokens; our choice: English words of more are rare, and clauses without spaces seldom have fewer
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenize(tokenizer: Any, texts: Sequence[str], max_len: int) -> Ragged:
    """Token ids of each text with its special tokens, cut at `max_len`.

    Args:
        tokenizer: a fast tokenizer of transformers.
        max_len: tokens, special tokens included.
    """
    inside = backend(tokenizer, max_len)
    # in blocks: an encoding takes a hundred times the memory of its ids. fast: without the words and places in the text
    # that `tokenize_words` needs, a quarter of the time
    blocks = (texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK))
    return ragged([np.array(each.ids, np.int32) for block in blocks for each in inside.encode_batch_fast(list(block))])


def tokenize_each(tokenizer: Any, texts: Sequence[str], limits: Sequence[int]) -> Ragged:
    """As `tokenize`, each text cut at a limit of its own."""
    own = sorted(set(limits))
    if len(own) == 1:
        return tokenize(tokenizer, texts, own[0])
    places = [[place for place, limit in enumerate(limits) if limit == each] for each in own]
    parts = [tokenize(tokenizer, [texts[place] for place in chosen], limit) for chosen, limit in zip(places, own, strict=True)]
    return pack(join(*parts), torch.argsort(torch.tensor([place for chosen in places for place in chosen])))


def tokenize_words(tokenizer: Any, texts: Sequence[str], max_len: int) -> tuple[Ragged, Tensor]:
    """As `tokenize`, with the word of each token, for any fast tokenizer.

    What a tokenizer calls a word may be a whole clause where it finds no spaces to split at. A word of more than
    `LONGEST_WORD` tokens (of those that the limit leaves) is not kept together: each of its tokens is a word of its own.

    Returns:
        The texts; int64 [T], words counted from 0 in each text in the order of the tokens, -1 on special tokens.
    """
    inside, special = backend(tokenizer, max_len), special_ids(tokenizer)
    parts, words = [], [np.zeros(0, np.int64)]
    for start in range(0, len(texts), BLOCK):  # for memory, as in `tokenize`
        encoded = inside.encode_batch(list(texts[start : start + BLOCK]))
        parts.append(ragged([np.array(each.ids, np.int32) for each in encoded]))
        given = np.concatenate([word_numbers(each, special) for each in encoded])
        words.append(numbered(given, parts[-1].lengths.numpy()))
    return join(*parts) if parts else ragged([]), torch.from_numpy(np.concatenate(words))


def contents(tokenizer: Any) -> dict[str, Any]:
    """All that decides on the tokens of a text, without where texts are cut and padded, which changes with each use."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}


def special_ids(tokenizer: Any) -> np.ndarray:
    """Ids of special tokens, which belong to no word also where a text has them written in it; unknown words are words."""
    return np.array([each for each in tokenizer.all_special_ids if each != tokenizer.unk_token_id], np.int64)


def word_numbers(encoding: Any, special: np.ndarray) -> np.ndarray:
    """float64 [T], the tokenizer's number of each token's word; nan on special tokens."""
    given = np.array(encoding.word_ids, np.float64)  # None becomes nan, without a loop in Python
    given[np.isin(np.array(encoding.ids), special)] = np.nan
    return given


def numbered(given: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Counts the words of each text from 0, those of more than `LONGEST_WORD` tokens token by token.

    Args:
        given: float64 [T], a tokenizer's number of each token's word, equal on the neighbouring tokens of one word; nan on
            special tokens.
        lengths: int64 [N], tokens of each text, summing to T.

    Returns:
        int64 [T], -1 on special tokens.
    """
    special = np.isnan(given)
    starts = np.cumsum(lengths) - lengths
    first = word_begins(given, starts[lengths > 0])
    count = np.cumsum(first & ~special)  # words up to each token, over all texts
    before = np.append(0, count)[starts]
    return np.where(special, -1, count - 1 - np.repeat(before, lengths))


def word_begins(given: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Whether a word begins at each token; in a 'word' of more than `LONGEST_WORD` tokens one begins at each.

    Args:
        given: float64 [T], of `numbered`.
        starts: where texts begin.
    """
    begins = np.append(True, given[1:] != given[:-1])[: len(given)]
    begins[starts] = True
    run = np.cumsum(begins) - 1
    return begins | (np.bincount(run)[run] > LONGEST_WORD)


def backend(tokenizer: Any, max_len: int) -> Any:
    """The tokenizer of `tokenizers` inside one of transformers, which spends as long again on dictionaries of lists."""
    inside = tokenizer.backend_tokenizer
    inside.enable_truncation(max_len, direction=tokenizer.truncation_side)
    inside.no_padding()
    return inside


def ragged(ids: Sequence[Any]) -> Ragged:
    """Lays lists or arrays of token ids end to end."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.concatenate(ids).astype(np.int64) if len(ids) else np.zeros(0, np.int64)
    return Ragged(torch.from_numpy(flat), torch.from_numpy(lengths))


def join(*parts: Ragged) -> Ragged:
    """The texts of all parts, one after the other."""
    return Ragged(torch.cat([part.ids for part in parts]), torch.cat([part.lengths for part in parts]))


def cut(lengths: Tensor, chunk_tokens: int, *, padded: bool) -> list[Tensor]:
    """Groups texts of similar length so that each group holds at most `chunk_tokens` tokens.

    Args:
        lengths: int64 [N].
        chunk_tokens: a single text longer than this makes a group of its own.
        padded: padding counts; a group then also ends where it would be more than a `PADDING`th padding, once it has an
            `ENOUGH`th of the tokens that it may have.

    Returns:
        int64 indices of each group, shortest texts first; every text is in one group.
    """
    order = torch.argsort(lengths, stable=True)
    ordered = lengths[order].tolist()
    ends, first, real = [], 0, 0
    for last, length in enumerate(ordered):
        tokens = (last - first + 1) * length if padded else real + length
        loose = padded and ENOUGH * real >= chunk_tokens and PADDING * (tokens - real - length) > tokens
        if last > first and (tokens > chunk_tokens or loose):
            ends.append(last)
            first, real = last, 0
        real += length
    return list(order.tensor_split(ends)) if ordered else []


def pack(text: Ragged, indices: Tensor) -> Ragged:
    """The texts at `indices`, end to end."""
    lengths = text.lengths[indices]
    starts = (text.lengths.cumsum(0) - text.lengths)[indices]
    ends = lengths.cumsum(0)
    places = torch.arange(int(ends[-1])) + (starts - ends + lengths).repeat_interleave(lengths)
    return Ragged(text.ids[places], lengths)


def chunk(text: Ragged, indices: Tensor, pad_id: int | None) -> Chunk | Ragged:
    """The texts at `indices` for one forward pass: padded by `pad_id`, or packed where it is None."""
    return pack(text, indices) if pad_id is None else pad(text, indices, pad_id)


def pad(text: Ragged, indices: Tensor, pad_id: int) -> Chunk:
    """Pads the texts at `indices` to the longest of them.

    Returns:
        ids [N, L] and mask [N, L], the mask None where all are of one length.
    """
    lengths = text.lengths[indices]
    width = int(lengths.max())
    starts = (text.lengths.cumsum(0) - text.lengths)[indices]
    columns = torch.arange(width)
    mask = columns < lengths[:, None]  # [N, L]
    # positions past the end of a text are clamped, then overwritten by padding
    places = (starts[:, None] + columns).clamp(max=len(text.ids) - 1)
    if bool(mask.all()):
        return Chunk(text.ids[places], None)
    return Chunk(torch.where(mask, text.ids[places], pad_id), mask)


def train_wordpiece(texts: Iterable[str], vocab_size: int, max_len: int) -> Any:
    """Trains a lower-casing WordPiece tokenizer, as BERT has it, on `texts`; the same texts give the same vocabulary.

    Args:
        texts: read twice; an iterator, which can be read once only, is held in memory.
        vocab_size: words, special tokens included.
        max_len: tokens that a model of this vocabulary takes.

    Returns:
        A fast tokenizer of transformers with BERT's special tokens.

    Raises:
        ValueError: `texts` are empty.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts) if isinstance(texts, Iterator) else texts
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    continuing = [f"##{each}" for each in continuing_characters(texts, normalizer, pre_tokenizer)]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    # the trainer numbers "##x" in the order of a hash map, another one each time, and breaks ties of counts by number:
    # as special tokens they have fixed numbers; the tokenizer made below knows them as words like any other
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=SPECIALS + continuing, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    ids = trained.get_vocab()
    if not continuing and len(ids) <= len(SPECIALS):
        raise ValueError("a vocabulary cannot be trained: the data has no training texts")
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_len,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def continuing_characters(texts: Iterable[str], normalizer: Any, pre_tokenizer: Any) -> list[str]:
    """The characters of normalised `texts` that can stand inside a word, sorted; signs are words of their own."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    normal = sorted({each for character in seen for each in normalizer.normalize_str(character)})

    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))]

    return [each for each in normal if pieces(f"a{each}") == [f"a{each}"]]
