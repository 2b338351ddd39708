"""RetroMAE's masks (Xiao et al. 2022, arXiv:2205.12035, section 3), a pure function of (seed, step, row).

The rules are those of staoxiao/RetroMAE at ee37587, src/pretrain/data.py:22-82, whose collator loops over every
position of every mask; here a text costs a handful of numpy calls.
"""

# S = masks in the set of a text, Z = masks of all texts of the chunk, the encoder's one of each included

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgetrain.types import Chunk, MaskedChunk, PositiveInt, Ratio, TextBatch

IGNORED = -100  # the label that torch.nn.functional.cross_entropy leaves out
# Shares of the encoder's masked tokens: Devlin et al. 2019, arXiv:1810.04805, section 3.1; the rest stay as they are
REPLACED_BY_MASK = 0.8
REPLACED_BY_RANDOM = 0.1
# numpy seeds [1, 2] and [1, 2, 0] alike, so a leading word of our own keeps other streams of (seed, ...) apart
STREAM = 0x6D61736B


class TextDraws(NamedTuple):
    """All that is random in the masks of one text.

    Attributes:
        orders: int32 [1 + S, words], each row a permutation of the words; row 0 is the encoder's mask.
        picks: int64 [length], 0 <= pick < S, the mask of the set that each position takes.
        actions: float64 [length], in [0, 1), which of the 80/10/10 befalls a masked token.
        random_ids: int64 [length], 0 <= id < vocab_size, what a token becomes if replaced by a random one.
    """

    orders: np.ndarray
    picks: np.ndarray
    actions: np.ndarray
    random_ids: np.ndarray


def mask_texts(
    batch: TextBatch,
    index: Tensor,
    *,
    encoder_ratio: Ratio,
    decoder_ratio: Ratio,
    decoder_masks: PositiveInt,
    mask_id: int,
    vocab_size: int,
    pad_id: int,
    seed: int,
    step: int,
) -> MaskedChunk:
    """Pads the texts `index` of `batch` together and draws their encoder and decoder masks.

    A mask hides whole words: max(1, round(length x ratio)) tokens, special tokens counted in the length but never
    hidden; words come in random order, and one that would exceed that number is skipped. (transformers caps the
    number at 512 tokens besides; no such cap here. It would bind only beyond 1,024 tokens at a ratio of 0.5.)
    Encoder: one mask. Decoder: a set of min(length, decoder_masks) independent masks; every position takes one of
    the set, drawn with replacement, and does not see itself either. The first token being special, column 0 is
    visible to every row but row 0.

    Args:
        batch: this rank's texts.
        index: int64 [N], N > 0, the texts of the chunk, each 0 <= index < number of texts.
        encoder_ratio: share of a text's tokens that the encoder predicts, 0.3 in the paper.
        decoder_ratio: share of a text's tokens hidden from each position of the decoder, 0.5 in the paper.
        decoder_masks: largest size of the set of a text, 256 in the authors' code.
        mask_id: id of the mask token.
        vocab_size: random replacements are drawn from 0 <= id < vocab_size.
        pad_id: id of the padding token.
        seed: >= 0.
        step: >= 0, the optimizer step.

    Returns:
        The chunk, on the CPU. A text's part is a function of (seed, step, batch.rows[text]) and of the text alone:
        neither the other texts of the chunk nor the rank changes it.
    """
    lengths, ids, words, real = _pad(batch, index.numpy(), pad_id)
    rows = batch.rows.numpy()[index.numpy()]
    draws = [
        draw_text(seed, step, int(row), int(length), int(own.max(initial=-1)) + 1, decoder_masks, vocab_size)
        for row, length, own in zip(rows, lengths, words, strict=True)
    ]
    encoder_masked, visible = _masks(lengths, words, draws, encoder_ratio, decoder_ratio)

    actions = np.zeros(ids.shape)
    actions[real] = np.concatenate([draw.actions for draw in draws])
    random_ids = np.zeros_like(ids)
    random_ids[real] = np.concatenate([draw.random_ids for draw in draws])
    encoder_ids = np.where(encoder_masked & (actions < REPLACED_BY_MASK + REPLACED_BY_RANDOM), random_ids, ids)
    encoder_ids[encoder_masked & (actions < REPLACED_BY_MASK)] = mask_id
    return MaskedChunk(
        clean=Chunk(torch.from_numpy(ids), None if real.all() else torch.from_numpy(real)),
        encoder_ids=torch.from_numpy(encoder_ids),
        encoder_labels=torch.from_numpy(np.where(encoder_masked, ids, IGNORED)),
        decoder_visible=torch.from_numpy(visible),
        decoder_labels=torch.from_numpy(np.where(words >= 0, ids, IGNORED)),
    )


def draw_text(seed: int, step: int, row: int, length: int, num_words: int, decoder_masks: int, vocab_size: int) -> TextDraws:
    """Draws all that is random in the masks of one text.

    Args:
        seed: >= 0.
        step: >= 0.
        row: >= 0, the text's position in the global batch.
        length: tokens, special tokens included.
        num_words: words of the text.
        decoder_masks: largest size of the set of masks.
        vocab_size: bound of the random replacements.

    Returns:
        The draws, the same for the same arguments in any process.
    """
    random = np.random.default_rng([STREAM, seed, step, row])
    set_size = min(length, decoder_masks)
    # Sorting random keys that end in the word's number costs a third of Generator.permuted
    number_bits = np.uint64(max(num_words, 1).bit_length())
    keys = random.integers(2**64, size=(1 + set_size, num_words), dtype=np.uint64)
    keys = (keys >> number_bits << number_bits) | np.arange(num_words, dtype=np.uint64)
    keys.sort(axis=1)
    return TextDraws(
        orders=(keys & ((np.uint64(1) << number_bits) - np.uint64(1))).astype(np.int32),
        picks=random.integers(set_size, size=length),
        actions=random.random(length),
        random_ids=random.integers(vocab_size, size=length),
    )


def _pad(batch: TextBatch, index: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lengths [N] of the texts `index`; ids and words [N, L], padded with pad_id and -1; True on real tokens [N, L]."""
    all_lengths = batch.text.lengths.numpy()
    lengths = all_lengths[index]
    starts = (np.cumsum(all_lengths) - all_lengths)[index]
    column = np.arange(lengths.max())
    real = column < lengths[:, None]  # [N, L]
    source = np.where(real, starts[:, None] + column, 0)  # padding reads token 0, overwritten below
    ids = np.where(real, batch.text.ids.numpy()[source], pad_id)
    words = np.where(real, batch.words.numpy()[source], -1)
    return lengths, ids, words, real


def _masks(
    lengths: np.ndarray, words: np.ndarray, draws: list[TextDraws], encoder_ratio: float, decoder_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's mask, True where masked, [N, L], and what each decoder position sees, [N, L, L]."""
    counts = np.array([len(draw.orders) for draw in draws])
    ends = np.cumsum(counts)
    # The ranks come first: the loop of _fill then walks contiguous rows
    sizes = np.zeros((max(draw.orders.shape[1] for draw in draws), ends[-1]), np.int32)  # [words of the longest, Z]
    room = np.repeat(_target(lengths, decoder_ratio), counts)  # [Z]
    room[ends - counts] = _target(lengths, encoder_ratio)
    for own, draw, end in zip(words, draws, ends, strict=True):
        num_masks, num_words = draw.orders.shape
        size = np.bincount(own[own >= 0], minlength=num_words).astype(np.int32)  # tokens of each word
        sizes[:num_words, end - num_masks : end] = size[draw.orders].T
    taken = _fill(sizes, room)

    encoder_masked = np.zeros(words.shape, bool)
    visible = np.zeros((*words.shape, words.shape[1]), bool)
    for text, (length, draw, end) in enumerate(zip(lengths, draws, ends, strict=True)):
        num_masks, num_words = draw.orders.shape
        # One column more, never set: special tokens are of word -1, which is the last column
        by_word = np.zeros((num_masks, num_words + 1), bool)
        np.put_along_axis(by_word, draw.orders, taken[:num_words, end - num_masks : end].T, axis=1)
        by_token = by_word[:, words[text, :length]]  # [1 + S, length]
        encoder_masked[text, :length] = by_token[0]
        visible[text, :length, :length] = ~by_token[1:][draw.picks]
    diagonal = np.arange(words.shape[1])
    visible[:, diagonal, diagonal] = False
    return encoder_masked, visible


def _target(lengths: np.ndarray, ratio: float) -> np.ndarray:
    """Tokens to mask of each text, int32 [N]; halves round to even, as Python's round does."""
    return np.maximum(1, np.rint(lengths * ratio)).astype(np.int32)


def _fill(sizes: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Takes words in order, skipping each that no longer fits.

    Args:
        sizes: int32 [words, Z], tokens of the word at each rank of the order of each mask.
        room: int32 [Z], tokens to mask; used up in place.

    Returns:
        bool [words, Z], True where the word is masked.
    """
    taken = np.zeros(sizes.shape, bool)
    for size, take in zip(sizes, taken, strict=True):
        np.less_equal(size, room, out=take)
        room -= size * take
        if not room.any():
            break
    return taken
