"""The loss of RetroMAE: masked language modelling by the encoder plus reconstruction by the decoder."""

from torch import Tensor
from torch.nn import functional

from bgetrain.types import LossOutput

# K = positions that the decoder reconstructs


def retromae_mlm(
    encoder_logits: Tensor,
    encoder_targets: Tensor,
    decoder_logits: Tensor,
    decoder_targets: Tensor,
    *,
    encoder_count: Tensor | int,
    decoder_count: Tensor | int,
) -> LossOutput:
    """Token-mean cross-entropy of the encoder plus that of the decoder, 1 : 1 (arXiv:2205.12035, section 3).

    Both means are over the tokens of the step's global batch, so every labelled token weighs the same. The authors'
    code (staoxiao/RetroMAE ee37587, src/pretrain/modeling.py:61) averages over the tokens of each rank and then
    over ranks, which weighs a token the more, the fewer its rank holds; the two agree where all ranks hold as many.

    Args:
        encoder_logits: [M, V], M >= 0.
        encoder_targets: int64 [M], the clean tokens at the positions that the encoder predicts.
        decoder_logits: [K, V], K >= 0.
        decoder_targets: int64 [K], the clean tokens at the positions that the decoder reconstructs.
        encoder_count: >= 0, positions that the encoder predicts in all chunks of all ranks of the step.
        decoder_count: >= 0, positions that the decoder reconstructs in all chunks of all ranks of the step.

    Returns:
        loss: this chunk's cross-entropy in fp32, summed over tokens and divided by the global counts; adding the
            losses (or gradients) of all chunks of all ranks gives that of the global batch. 0, with a graph, where
            the chunk has no labelled token.
        metrics: `encoder_loss` and `decoder_loss`, the addends of the loss, detached.
    """
    encoder_loss = _share(encoder_logits, encoder_targets, encoder_count)
    decoder_loss = _share(decoder_logits, decoder_targets, decoder_count)
    metrics = {"encoder_loss": encoder_loss.detach(), "decoder_loss": decoder_loss.detach()}
    return LossOutput(encoder_loss + decoder_loss, metrics)


def _share(logits: Tensor, targets: Tensor, count: Tensor | int) -> Tensor:
    """Summed cross-entropy of these tokens over the count of all tokens; fp32 scalar."""
    total = functional.cross_entropy(logits.float(), targets, reduction="sum")  # fp32 for the softmax
    # A step whose words are all too long to be masked has no token at all; 0 / 0 would stop the run
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
