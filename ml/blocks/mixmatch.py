"""The semi-supervised step of MixMatch (Berthelot et al., NeurIPS 2019), as DivideMix and PES (semi) take it.

Targets of labelled and unlabelled images, and the loss of their mixtures; the mixing itself is in `mixup`. Everything
is f32.

Shapes: `B` images, `C` classes, `R` mixed rows; logits and targets (B, C) or (R, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ml.blocks import losses


def average_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Mean softmax over views and networks (co-guessing, DivideMix Alg. 1): logits (B, C) each -> (B, C)."""
    return torch.stack([one.float().softmax(dim=1) for one in logits]).mean(dim=0)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1/T) / Σ_c p_c^(1/T) (DivideMix Eq. 4), (B, C).

    Args:
        probabilities: p, (B, C).
        temperature: T > 0; 1 changes nothing, towards 0 only the largest probability remains.
    """
    return (probabilities.log() / temperature).softmax(dim=1)


def co_refine(labels: Tensor, clean_probability: Tensor, predicted: Tensor) -> Tensor:
    """w · Y + (1 - w) · p (DivideMix Eq. 3), (B, C).

    Args:
        labels: given labels int64 (B,), Y as one-hot.
        clean_probability: w, P(the label is clean) (B,) in [0, 1].
        predicted: p, the network's own average probabilities (B, C).
    """
    given_targets = losses.one_hot(labels, predicted.shape[1]).to(predicted.dtype)
    return torch.lerp(predicted, given_targets, clean_probability[:, None])


def loss(
    logits: Tensor, targets: Tensor, labelled: int, unlabelled_weight: float, class_weights: Tensor | None = None
) -> Tensor:
    """L_x + λ_u · L_u of mixed rows (DivideMix Eq. 9 and 10): a scalar.

    L_x is the cross-entropy of the labelled rows. L_u is the mean squared distance between the other rows'
    probabilities and targets; it is bounded, so a wrong guess costs little.

    Args:
        logits: of the mixed images, (R, C).
        targets: mixed targets, (R, C).
        labelled: number of rows, the first ones, that come from labelled images.
        unlabelled_weight: λ_u.
        class_weights: (C,), weights of the labelled rows' targets, as in PES.
    """
    labelled_targets = targets[:labelled] if class_weights is None else targets[:labelled] * class_weights
    supervised = losses.soft_cross_entropy(logits[:labelled], labelled_targets)
    if unlabelled_weight == 0.0 or labelled == len(logits):
        return supervised
    distance = functional.mse_loss(logits[labelled:].float().softmax(dim=1), targets[labelled:])
    return supervised + unlabelled_weight * distance
