"""The semi-supervised step of MixMatch (Berthelot et al., NeurIPS 2019) as DivideMix and its relatives take it.

Targets for labelled and unlabelled images, and the loss of their mixtures; the mixing itself is `mixup`. It knows no
network, only what networks answered. Everything is f32. Shapes: `B` images, `C` classes, `R` mixed rows, of which the
first `labelled` stem from labelled images; logits and targets (., C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ml.blocks import losses


def average_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Mean of the softmax over views and networks, each (B, C): rows sum to 1 (DivideMix Eq. 5, Alg. 1 line 15)."""
    return torch.stack([each.float().softmax(dim=1) for each in logits]).mean(dim=0)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1/T) / Σ_c p_c^(1/T), (B, C) (DivideMix Eq. 4): T = 1 changes nothing, T -> 0 leaves the largest alone."""
    return (probabilities.log() / temperature).softmax(dim=1)


def co_refine(labels: Tensor, clean_probability: Tensor, own: Tensor) -> Tensor:
    """w · Y + (1 - w) · p (DivideMix Eq. 3): given labels int64 (B,), w (B,) in [0, 1], own average (B, C)."""
    given = losses.one_hot(labels, own.shape[1]).to(own.dtype)
    return torch.lerp(own, given, clean_probability[:, None])


def loss(
    logits: Tensor, targets: Tensor, labelled: int, unlabelled_weight: float, class_weights: Tensor | None = None
) -> Tensor:
    """L_x + λ_u · L_u of mixed rows (DivideMix Eq. 9, 10), a scalar: cross-entropy of the first `labelled` rows, and
    the squared distance of probabilities of the rest, which bounds what a wrong guess can cost, mean over elements.

    `class_weights` (C,) weigh the targets of the labelled rows, as PES does.
    """
    wanted = targets[:labelled] if class_weights is None else targets[:labelled] * class_weights
    supervised = losses.soft_cross_entropy(logits[:labelled], wanted)
    if unlabelled_weight == 0.0 or labelled == len(logits):
        return supervised
    distance = functional.mse_loss(logits[labelled:].float().softmax(dim=1), targets[labelled:])
    return supervised + unlabelled_weight * distance
