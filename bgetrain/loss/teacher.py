"""Distillation from a teacher's scores of a query's own passages."""

import torch
from torch import Tensor
from torch.nn import functional as F


def group_divergence(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence from the teacher's softmax over the group to the student's (FlagEmbedding's `kl_div` less its constant).

    Args:
        scores: fp32 [B, G], the student's logits, temperature included.
        teacher: fp32 [B, G].
        temperature: of the teacher's softmax, > 0.

    Returns:
        fp32 [B], >= 0.
    """
    target = F.log_softmax(teacher / temperature, dim=-1)
    return (target.exp() * (target - F.log_softmax(scores, dim=-1))).sum(-1)


def batch_cross_entropy(scores: Tensor, others: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every passage of the group against the whole batch, weighted by the teacher.

    Passage g is told from all candidates but the passages before it in its group (FlagEmbedding's `m3_kd_loss`,
    abc/finetune/embedder/AbsModeling.py:325-340).

    Args:
        scores: fp32 [B, G], the student's logits.
        others: fp32 [B], log-sum-exp of the logits of all candidates outside the group.
        teacher: fp32 [B, G].
        temperature: of the teacher's softmax, > 0.

    Returns:
        fp32 [B].
    """
    left = scores.flip(-1).logcumsumexp(-1).flip(-1)  # [B, G], over passages g, g + 1, ...
    losses = torch.logaddexp(left, others[:, None]) - scores
    return (F.softmax(teacher / temperature, dim=-1) * losses).sum(-1)
