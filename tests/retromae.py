"""RetroMAE's masks as its authors' code makes them: plain loops over texts, words and positions, for equality and speed."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from bgetrain.types import WordChunk

CLS, SEP, PAD, MASK, VOCAB = 1, 2, 0, 3, 200
SIZES = {"pieces": [1, 1, 1, 2, 3, 4], "long words": [1, 2, 5, 8], "clauses": [1, 1, 3, 8, 20]}  # tokens of a word


class TextDraws(NamedTuple):
    """All that is random in the masks of one text of L tokens.

    Attributes:
        encoder_order: the words in the order in which the encoder's mask takes them.
        decoder_orders: the same for each mask of the set; there are min(L, cap).
        picks: L numbers, the mask of the set that each position takes.
        actions: L numbers in [0, 1): a hidden token is replaced by the mask below 0.8, by a random one below 0.9.
        random_ids: L ids, what a token becomes if replaced by a random one.
    """

    encoder_order: list[int]
    decoder_orders: list[list[int]]
    picks: list[int]
    actions: list[float]
    random_ids: list[int]


def literal_word_mask(words: list[int], order: list[int], ratio: float) -> list[int]:
    """1 on each hidden token: whole words in the given order, at most max(1, round(ratio of all tokens)) tokens.

    Args:
        words: the word of each token, -1 on special tokens.
        order: the words as they are tried; one that does not fit is skipped.
        ratio: share of the tokens.
    """
    to_hide = max(1, round(len(words) * ratio))
    covered: list[int] = []
    for word in order:
        if len(covered) >= to_hide:
            break
        positions = []
        for position, own in enumerate(words):
            if own == word:
                positions.append(position)
        if len(covered) + len(positions) > to_hide:
            continue
        covered.extend(positions)
    return [1 if position in covered else 0 for position in range(len(words))]


def literal_masks(
    ids: list[int], words: list[int], draws: TextDraws, encoder_ratio: float, decoder_ratio: float, mask_id: int
) -> tuple[list[int], list[bool], list[list[bool]]]:
    """One text: what the encoder reads, where it predicts, and what each decoder row sees."""
    encoder_ids, encoder_at = list(ids), [False] * len(ids)
    for position, hides in enumerate(literal_word_mask(words, draws.encoder_order, encoder_ratio)):
        if hides:
            encoder_at[position] = True
            if draws.actions[position] < 0.8:
                encoder_ids[position] = mask_id
            elif draws.actions[position] < 0.9:
                encoder_ids[position] = draws.random_ids[position]
    mask_set = [literal_word_mask(words, order, decoder_ratio) for order in draws.decoder_orders]
    visible = []
    for position in range(len(ids)):
        row = list(mask_set[draws.picks[position]])
        row[position] = 1
        visible.append([hides == 0 for hides in row])
    return encoder_ids, encoder_at, visible


def literal_batch(
    texts: list[list[int]],
    words: list[list[int]],
    encoder_ratio: float,
    decoder_ratio: float,
    cap: int,
    mask_id: int,
    vocab_size: int,
    pad_id: int,
    random: Random,
) -> dict[str, Tensor]:
    """The collator of staoxiao/RetroMAE (src/pretrain/data.py at ee37587), which draws as it goes.

    Args:
        texts: token ids of each text, special tokens included.
        words: the word of each token, -1 on special tokens.
        encoder_ratio: share of the tokens that the encoder predicts.
        decoder_ratio: share of the tokens hidden from each row of the decoder.
        cap: largest number of masks in the set of a text.
        mask_id: id of the mask token.
        vocab_size: random replacements are below it.
        pad_id: id of the padding token.
        random: draws everything.

    Returns:
        Padded to the longest text: `ids` and `encoder_ids` int64 [N, L]; `mask`, `encoder_at` and `decoder_at` bool [N, L],
        True on real tokens, on those that the encoder and on those that the decoder predicts; `visible` bool [N, L, L].
    """
    longest = max(len(ids) for ids in texts)
    columns: dict[str, list[list[int]]] = {key: [] for key in ("ids", "mask", "encoder_ids", "encoder_at", "decoder_at")}
    visible = torch.zeros(len(texts), longest, longest, dtype=torch.bool)
    for number, (ids, own) in enumerate(zip(texts, words, strict=True)):
        encoder_at = drawn_word_mask(own, encoder_ratio, random)
        encoder_ids = []
        for token, hides in zip(ids, encoder_at, strict=True):
            action = random.random() if hides else 1.0
            encoder_ids.append(mask_id if action < 0.8 else random.randrange(vocab_size) if action < 0.9 else token)

        set_size = min(len(ids), cap)
        mask_set = [drawn_word_mask(own, decoder_ratio, random) for _ in range(set_size)]
        rows = []
        for position in range(len(ids)):
            row = list(mask_set[random.randrange(set_size)])
            row[position] = 1
            rows.append(row)
        visible[number, : len(ids), : len(ids)] = 1 - torch.tensor(rows)

        for key, values, padding in (
            ("ids", ids, pad_id),
            ("mask", [1] * len(ids), 0),
            ("encoder_ids", encoder_ids, pad_id),
            ("encoder_at", encoder_at, 0),
            ("decoder_at", [int(word >= 0) for word in own], 0),
        ):
            columns[key].append([*values, *[padding] * (longest - len(ids))])
    tensors = {key: torch.tensor(rows) for key, rows in columns.items()}
    flags = {key: tensors[key].bool() for key in ("mask", "encoder_at", "decoder_at")}
    return {**tensors, **flags, "visible": visible}


def drawn_word_mask(words: Sequence[int], ratio: float, random: Random) -> list[int]:
    """1 on each hidden token, by a fresh order of the words, each a list of its token positions."""
    groups: list[list[int]] = []
    for position, word in enumerate(words):
        if word == -1:
            continue
        if groups and words[groups[-1][-1]] == word:
            groups[-1].append(position)
        else:
            groups.append([position])
    random.shuffle(groups)
    to_hide = max(1, round(len(words) * ratio))
    covered: set[int] = set()
    for group in groups:
        if len(covered) >= to_hide:
            break
        if len(covered) + len(group) > to_hide:
            continue
        covered.update(group)
    return [1 if position in covered else 0 for position in range(len(words))]


def chunk_of(texts: list[tuple[list[int], list[int]]], rows: list[int], extra: int = 0) -> WordChunk:
    """Texts of (ids, words), padded to the longest and `extra` columns more."""
    width = max(len(ids) for ids, _ in texts) + extra
    ids = torch.tensor([[*ids, *[PAD] * (width - len(ids))] for ids, _ in texts])
    words = torch.tensor([[*words, *[-1] * (width - len(words))] for _, words in texts])
    mask = torch.arange(width) < torch.tensor([len(ids) for ids, _ in texts])[:, None]
    return WordChunk(ids, None if mask.all() else mask, words, torch.tensor(rows))


def text_of(length: int, sizes: list[int], draw: Random) -> tuple[list[int], list[int]]:
    """[CLS] words [SEP], the last word cut where the text ends; a text of 1 token is [CLS] alone."""
    words: list[int] = []
    while len(words) < length - 2:
        words += [words[-1] + 1 if words else 0] * draw.choice(sizes)
    words = [-1, *words[: max(length - 2, 0)], -1][:length]
    return [CLS, *(draw.randrange(4, VOCAB) for _ in range(length - 2)), SEP][:length], words


def texts_of(lengths: list[int], sizes: str = "pieces", seed: int = 0) -> list[tuple[list[int], list[int]]]:
    draw = Random(seed)
    return [text_of(length, SIZES[sizes], draw) for length in lengths]


def single_words(length: int, copies: int = 1, row: int = 0) -> WordChunk:
    """Texts of words of one token each."""
    text = ([CLS, *range(4, length + 2), SEP], [-1, *range(length - 2), -1])
    return chunk_of([text] * copies, list(range(row, row + copies)))
