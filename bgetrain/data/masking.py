"""RetroMAE's masks (Xiao et al. 2022, arXiv:2205.12035, section 3), a pure function of (seed, step, row).

The rules are those of staoxiao/RetroMAE at ee37587, src/pretrain/data.py:22-82, whose collator loops over every position of
every mask; here a chunk costs some dozens of tensor operations, on the device that it lies on.

A mask hides whole words: max(1, round(length x ratio)) tokens, special tokens counted in the length but never hidden. Words
come in random order, and one that would exceed that number is skipped. (transformers caps the number at 512 tokens besides;
no such cap here. It would bind only beyond 1,024 tokens at a ratio of 0.5.)
"""

# S = masks in the set of a text, U = words of the text that has most, Z = N x S

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bgetrain.data.order import hashed
from bgetrain.types import PositiveInt, Ratio, WordChunk

# Tenths of the encoder's hidden tokens: Devlin et al. 2019, arXiv:1810.04805, section 3.1; the rest stay as they are
REPLACED_BY_MASK = 8
REPLACED_BY_RANDOM = 1
# What a hash is for: draws of one purpose say nothing of those of another
ENCODER_ORDER, ACTION, RANDOM_ID, DECODER_ORDER, PICK = range(5)
SIGN = 1 << 63


class Masking(NamedTuple):
    """How texts are masked.

    Attributes:
        encoder_ratio: share of a text's tokens that the encoder predicts, 0.3 in the paper.
        decoder_ratio: share of a text's tokens hidden from each position of the decoder, 0.5 in the paper.
        decoder_masks: largest size of the set of masks of a text, 256 in the authors' code, 128 in FlagEmbedding's.
        mask_id: id of the mask token.
        vocab_size: random replacements are drawn from 0 <= id < vocab_size.
        seed: >= 0.
    """

    encoder_ratio: Ratio
    decoder_ratio: Ratio
    decoder_masks: PositiveInt
    mask_id: int
    vocab_size: int
    seed: int

    def encoder(self, chunk: WordChunk, step: int) -> tuple[Tensor, Tensor]:
        """What the encoder reads and where it predicts.

        A text's part is a function of (seed, step, chunk.rows[text]) and of the text alone: neither the other texts of the
        chunk nor padding, rank or device changes it.

        Args:
            chunk: N > 0 texts.
            step: >= 0, the optimizer step.

        Returns:
            int64 [N, L], the texts after 80/10/10 replacement; bool [N, L], True where the encoder predicts.
        """
        return encoder_masks(chunk, draw_encoder(self, chunk, step), self.encoder_ratio, self.mask_id)

    def decoder(self, chunk: WordChunk, step: int) -> Tensor:
        """What each position of the decoder sees, drawn as `encoder` draws; column 0 is the embedding.

        A text has a set of min(length, decoder_masks) independent masks; every position takes one of the set, drawn with
        replacement, and does not see itself either. Special tokens are visible to all rows but their own; columns of padding
        are invisible, and rows of padding see nothing.

        Returns:
            bool [N, L, L], True where row i may attend to column j.
        """
        return decoder_masks(chunk, draw_decoder(self, chunk, step), self.decoder_ratio)


def masking(
    *, encoder_ratio: Ratio, decoder_ratio: Ratio, decoder_masks: PositiveInt, mask_id: int, vocab_size: int, seed: int
) -> Masking:
    """What `Masking` describes."""
    return Masking(encoder_ratio, decoder_ratio, decoder_masks, mask_id, vocab_size, seed)


class EncoderDraws(NamedTuple):
    """All that is random in the encoder's masks; what stands at padding is of no effect.

    Attributes:
        orders: int64 [N, 1, U], permutations of 0 to U - 1; numbers that no word of the text has are of no effect.
        actions: int64 [N, L], 0 to 9: which of the 80/10/10 befalls the token if it is hidden.
        random_ids: int64 [N, L], 0 <= id < vocab_size, what the token becomes if it is replaced by a random one.
    """

    orders: Tensor
    actions: Tensor
    random_ids: Tensor


class DecoderDraws(NamedTuple):
    """All that is random in the decoder's masks; what stands at padding is of no effect.

    Attributes:
        orders: int64 [N, S, U], as `EncoderDraws.orders`, for each mask of the set of a text; a text of fewer than S tokens
            has a smaller set, the first ones.
        picks: int64 [N, L], 0 <= pick < min(length, decoder_masks), the mask of the set that the position takes.
    """

    orders: Tensor
    picks: Tensor


def draw_encoder(masking: Masking, chunk: WordChunk, step: int) -> EncoderDraws:
    """Draws all that is random in `Masking.encoder`."""
    columns = torch.arange(chunk.ids.shape[1], device=chunk.ids.device)
    actions, random_ids = (
        mixed(texts_mixed(chunk, masking.seed, step, purpose)[:, None], columns) & (SIGN - 1) for purpose in (ACTION, RANDOM_ID)
    )
    orders = word_orders(chunk, texts_mixed(chunk, masking.seed, step, ENCODER_ORDER), 1)
    return EncoderDraws(orders, actions % 10, random_ids % masking.vocab_size)


def draw_decoder(masking: Masking, chunk: WordChunk, step: int) -> DecoderDraws:
    """Draws all that is random in `Masking.decoder`."""
    width = chunk.ids.shape[1]
    columns = torch.arange(width, device=chunk.ids.device)
    picks = mixed(texts_mixed(chunk, masking.seed, step, PICK)[:, None], columns) & (SIGN - 1)
    orders = word_orders(chunk, texts_mixed(chunk, masking.seed, step, DECODER_ORDER), min(width, masking.decoder_masks))
    return DecoderDraws(orders, picks % lengths_of(chunk).clamp(max=masking.decoder_masks)[:, None])


def encoder_masks(chunk: WordChunk, draws: EncoderDraws, ratio: Ratio, mask_id: int) -> tuple[Tensor, Tensor]:
    """What `Masking.encoder` returns, from its draws."""
    at = hidden(chunk, draws.orders, ratio)[:, 0]
    ids = torch.where(at & (draws.actions < REPLACED_BY_MASK + REPLACED_BY_RANDOM), draws.random_ids, chunk.ids)
    return ids.masked_fill_(at & (draws.actions < REPLACED_BY_MASK), mask_id), at


def decoder_masks(chunk: WordChunk, draws: DecoderDraws, ratio: Ratio) -> Tensor:
    """What `Masking.decoder` returns, from its draws."""
    by_mask = hidden(chunk, draws.orders, ratio)  # [N, S, L]
    texts, masks, width = by_mask.shape
    first = torch.arange(0, texts * masks, masks, device=by_mask.device)  # where each text's set begins
    rows = by_mask.logical_not_().flatten(0, 1).index_select(0, (first[:, None] + draws.picks).flatten())
    visible = rows.view(texts, width, width)
    visible.diagonal(dim1=1, dim2=2).fill_(False)
    if chunk.mask is not None:
        visible &= chunk.mask[:, :, None] & chunk.mask[:, None, :]
    return visible


def hidden(chunk: WordChunk, orders: Tensor, ratio: Ratio) -> Tensor:
    """The tokens that each mask hides.

    Args:
        chunk: N texts.
        orders: int64 [N, S, U], the order in which each mask takes the words.
        ratio: share of the tokens.

    Returns:
        bool [N, S, L], True on hidden tokens; False on special tokens and padding.
    """
    texts, masks, num_words = orders.shape
    # one word more, which special tokens and padding belong to and no order holds
    words = torch.where(chunk.words < 0, num_words, chunk.words)
    sizes = torch.zeros(texts, num_words + 1, dtype=torch.int32, device=words.device)
    sizes.scatter_add_(1, words, torch.ones_like(words, dtype=torch.int32))
    # double: Python's round of the same product
    target = (lengths_of(chunk).double() * ratio).round_().clamp_(min=1).int()  # [N]
    ordered = sizes[:, None].expand(-1, masks, -1).gather(2, orders)
    taken = fill(ordered.flatten(0, 1), target.repeat_interleave(masks, output_size=texts * masks))
    by_word = torch.zeros(texts, masks, num_words + 1, dtype=torch.bool, device=words.device)
    by_word.scatter_(2, orders, taken.view_as(orders))
    return by_word.gather(2, words[:, None].expand(-1, masks, -1))


def fill(sizes: Tensor, room: Tensor) -> Tensor:
    """Takes words in order, skipping each that no longer fits.

    Args:
        sizes: int32 [Z, U], >= 0, tokens of the words in the order of each mask.
        room: int32 [Z], tokens to hide.

    Returns:
        bool [Z, U], True on words that are taken.
    """
    ends = sizes.cumsum(1, dtype=torch.int32)
    taken = ends <= room[:, None]
    room = room - torch.where(taken, ends, 0).amax(1)
    # What is left is less than the first word that did not fit. In each pass the words too large for it go, and of the
    # others those that fit together are taken: again less is left than the first that was not. So there are no more passes
    # than the largest word has tokens, over ever fewer masks.
    masks = room.nonzero()[:, 0]
    room, waiting = room[masks, None], sizes[masks].masked_fill_(taken[masks], 0)
    while len(masks):
        waiting.masked_fill_(waiting > room, 0)
        ends = waiting.cumsum(1, dtype=torch.int32)
        fits = (ends <= room) & (waiting > 0)
        taken[masks] |= fits
        room = room - torch.where(fits, ends, 0).amax(1, keepdim=True)
        waiting.masked_fill_(fits, 0)
        still = ((waiting > 0) & (waiting <= room)).any(1).nonzero()[:, 0]
        masks, room, waiting = masks[still], room[still], waiting[still]
    return taken


def word_orders(chunk: WordChunk, texts: Tensor, masks: int) -> Tensor:
    """Random orders of the words.

    Args:
        chunk: N texts.
        texts: int64 [N], the hash of each.
        masks: S.

    Returns:
        int64 [N, S, U], permutations of 0 to U - 1; the order of a text's own words does not depend on U.
    """
    num_words = max(int(chunk.words.max()) + 1, 1)  # U; waits for the device, as `fill` does
    device = chunk.words.device
    of_masks = mixed(texts[:, None], torch.arange(masks, device=device))
    pairs = mixed(of_masks[:, :, None], torch.arange((num_words + 1) // 2, device=device))
    # A hash is the key of two words. In one mask of 33,000, two of 512 words have the same; the lower number then comes first.
    keys = pairs.view(torch.int32)[:, :, :num_words].long()
    keys.bitwise_left_shift_(32).add_(torch.arange(num_words, device=device))
    if device.type == "cpu":
        keys.numpy().sort(axis=2)  # in place; a fifth of torch's time
    else:
        keys = keys.sort(dim=2).values
    return keys.bitwise_and_((1 << 32) - 1)


def lengths_of(chunk: WordChunk) -> Tensor:
    """Tokens of each text, int64 [N]."""
    if chunk.mask is not None:
        return chunk.mask.sum(1)
    return torch.full(chunk.rows.shape, chunk.ids.shape[1], device=chunk.ids.device)


def texts_mixed(chunk: WordChunk, seed: int, step: int, purpose: int) -> Tensor:
    """int64 [N], a hash of (seed, step, purpose) and each text's row."""
    return mixed(int(hashed(seed, step, purpose).astype(np.int64)), chunk.rows)


def mixed(state: Tensor | int, keys: Tensor) -> Tensor:
    """Mixes one key more into a hash: the bits of `data.order.hashed`, but as int64 and on any device.

    Args:
        state: int64, the hash of the keys before; broadcasts with `keys`.
        keys: int64, >= 0.
    """
    state = state + (keys + signed(0x9E3779B97F4A7C15))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        # int64 is shifted with its sign, which is cut off again
        state.bitwise_xor_((state >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(signed(factor))
    return state.bitwise_xor_((state >> 31).bitwise_and_((1 << 33) - 1))


def signed(number: int) -> int:
    """The int64 of the same bits as a uint64."""
    return number - 2 * SIGN if number >= SIGN else number
