"""Early-learning regularisation (Liu et al., NeurIPS 2020): predictions are held to their own running average.

A network fits clean labels first, so early predictions are often right where the label is wrong.

Shapes: `B` batch, `C` classes; probabilities and targets f32 (B, C).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ml.method import MethodParams

MIN_PROBABILITY = 1e-4  # probabilities are clipped to [this, 1 - this], which keeps the logarithm below finite


class EarlyLearningParams(MethodParams):
    """Momentum of the running averages and weight of the regularisation."""

    target_kept: float = Field(
        default=0.7,
        ge=0.0,
        lt=1.0,
        description="Momentum of the running average of a sample's predictions: 0.9 for asymmetric noise and for 100 "
        "classes.",
    )
    weight: float = Field(
        default=3.0,
        ge=0.0,
        le=100.0,
        description="Weight of the regularisation: 1 for asymmetric noise, 7 for 100 classes.",
    )


def clipped_softmax(logits: Tensor) -> Tensor:
    """softmax(logits) clipped to [1e-4, 1 - 1e-4], (B, C); rows need not sum to 1."""
    return logits.float().softmax(dim=1).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)


def regularization(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean log(1 - ⟨t, p⟩) over the batch (Eq. 6): a scalar below 0, lowest where predictions equal their targets.

    Args:
        probabilities: p, (B, C), at most 1 - 1e-4 each.
        targets: t, running averages of earlier predictions, (B, C).
    """
    return torch.log1p(-(targets * probabilities).sum(dim=1)).mean()
