"""Early-learning regularisation (Liu et al., NeurIPS 2020): answers are held to what they were before wrong labels set
in.

Knows probabilities and remembered ones, no network and no label. Shapes: `B` batch, `C` classes, (B, C), f32.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ml.method import MethodParams

LEAST = 1e-4  # a probability counts as at least this, and as at most 1 minus this: the logarithm below stays finite


class EarlyLearningParams(MethodParams):
    """How long an average remembers, and how strongly it holds."""

    target_kept: float = Field(
        default=0.7,
        ge=0.0,
        lt=1.0,
        description="Share of a sample's remembered answer that stays at each new one: 0.9 for asymmetric noise and "
        "for 100 classes.",
    )
    weight: float = Field(
        default=3.0,
        ge=0.0,
        le=100.0,
        description="Of being held to the remembered answers: 1 for asymmetric noise, 7 for 100 classes.",
    )


def clipped_softmax(logits: Tensor) -> Tensor:
    """softmax(logits) within [1e-4, 1 - 1e-4]; rows need not sum to 1."""
    return logits.float().softmax(dim=1).clamp(LEAST, 1 - LEAST)


def regularization(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean log(1 - ⟨t, p⟩) over the batch (Eq. 6): a scalar below 0, the lower the more p is what t was."""
    return torch.log1p(-(targets * probabilities).sum(dim=1)).mean()
