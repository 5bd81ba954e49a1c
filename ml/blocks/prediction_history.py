"""Earlier predictions of every sample, by its position: a running average (EMA), or the last K predictions.

Both are buffers, so a checkpoint holds them, and no gradient flows through them.

Shapes: `N` samples, `B` batch, `C` classes, `K` predictions; f32, rows are probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PredictionEma(nn.Module):
    """The running average t <- momentum · t + (1 - momentum) · p of each sample, from 0 and without bias correction."""

    values: Tensor  # (N, C)

    def __init__(self, samples: int, classes: int, momentum: float) -> None:
        """Start at 0.

        Args:
            samples: N.
            classes: C.
            momentum: share of the average that stays at each update, in [0, 1).
        """
        super().__init__()
        self.momentum = momentum
        self.register_buffer("values", torch.zeros(samples, classes))

    @torch.no_grad()
    def update(self, index: Tensor, probabilities: Tensor) -> Tensor:
        """Add new predictions.

        Args:
            index: positions of the samples, int64 (B,).
            probabilities: their predictions, (B, C).

        Returns:
            The averages of these samples after the update, (B, C).
        """
        averages = torch.lerp(probabilities.float(), self.values[index], self.momentum)
        self.values[index] = averages
        return averages


class PredictionHistory(nn.Module):
    """The predictions of the last K epochs: a new one replaces the oldest. NaN where there were fewer so far."""

    values: Tensor  # (K, N, C)

    def __init__(self, samples: int, classes: int, length: int) -> None:
        """Start empty, for N samples, C classes and K = `length` epochs."""
        super().__init__()
        self.register_buffer("values", torch.full((length, samples, classes), torch.nan))

    def slot(self, epoch: int) -> int:
        """Where the predictions of an epoch go: 0 to K - 1."""
        return epoch % len(self.values)

    @torch.no_grad()
    def write(self, slot: int, index: Tensor, probabilities: Tensor) -> None:
        """Store predictions (B, C) of the samples int64 (B,) in the place of their epoch, as `slot` says it."""
        self.values[slot][index] = probabilities.float()

    def mean(self) -> Tensor:
        """Mean over the stored predictions of each sample, (N, C); NaN for a sample without any."""
        return self.values.nanmean(dim=0)
