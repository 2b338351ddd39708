"""RetroMAE's masks (Xiao et al. 2022, arXiv:2205.12035, section 3), a pure function of (seed, step, row)."""

from typing import NamedTuple

from torch import Tensor

from bgetrain.types import PositiveInt, Ratio, WordChunk


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
        """int64 [N, L], the texts after 80/10/10 replacement; bool [N, L], True where the encoder predicts."""
        raise NotImplementedError

    def decoder(self, chunk: WordChunk, step: int) -> Tensor:
        """bool [N, L, L], True where decoder row i may attend to column j; column 0 is the embedding."""
        raise NotImplementedError


def masking(
    *, encoder_ratio: Ratio, decoder_ratio: Ratio, decoder_masks: PositiveInt, mask_id: int, vocab_size: int, seed: int
) -> Masking:
    """What `Masking` describes."""
    return Masking(encoder_ratio, decoder_ratio, decoder_masks, mask_id, vocab_size, seed)
