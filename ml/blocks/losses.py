"""Loss terms on logits, always computed in f32, whatever the network's precision.

Shapes: `B` batch, `C` classes; logits (B, C), labels int64 (B,). A loss is a scalar, in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """int64 (B,) -> f32 (B, C). torch's own returns int64 and waits for the device to check the range of labels."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean H(Y, softmax(logits)) over the batch: a scalar."""
    return functional.cross_entropy(logits.float(), labels)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """H(Y, softmax(logits)) of every row: (B,)."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """H(Y, softmax(logits)) averaged by the labels' class weights (C,): a scalar, 0 where the weights sum to 0."""
    label_weights = weights[labels]
    return (label_weights * cross_entropies(logits, labels)).sum() / label_weights.sum().clamp_min(1e-12)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean H(q, softmax(logits)) over the batch, a scalar; `targets` q (B, C) sum to 1."""
    return -(targets * functional.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Mean of `symmetric_kls` over the batch, a scalar; `first` and `second` as there."""
    return symmetric_kls(first, second).mean()


def symmetric_kls(first: Tensor, second: Tensor) -> Tensor:
    """KL(p‖q) + KL(q‖p) of every row, (B,); p and q are the softmax of the logits `first` and `second`, (B, C)."""
    p, q = functional.log_softmax(first.float(), dim=1), functional.log_softmax(second.float(), dim=1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=1)


def consistency_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL(p‖q), a scalar; p and q are the softmax of `teacher` and `student` logits (B, C), p without gradient."""
    log_p, log_q = (functional.log_softmax(logits.float(), dim=1) for logits in (teacher.detach(), student))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def prior_kl(logits: Tensor) -> Tensor:
    """KL(uniform ‖ batch mean of softmax(logits)): a scalar, 0 where all classes are predicted equally often."""
    mean = logits.float().softmax(dim=1).mean(dim=0)
    return -(mean * len(mean)).clamp_min(1e-12).log().mean()


def negative_entropy(logits: Tensor) -> Tensor:
    """Mean Σ_c p_c log p_c over the batch: a scalar in [-log C, 0], largest for confident predictions."""
    log_p = functional.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * log_p).sum(dim=1).mean()
