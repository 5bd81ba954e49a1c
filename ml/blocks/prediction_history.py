"""What a network said of every sample, remembered by its position: a running average, or the last few answers.

A memory is a buffer, so a checkpoint holds it. It knows no label and no loss, and no gradient runs through it.

Shapes: `N` samples, `B` batch, `C` classes, `K` remembered answers; f32, rows are probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PredictionEma(nn.Module):
    """An exponential moving average, from 0 and not corrected for it: t <- kept · t + (1 - kept) · p."""

    values: Tensor  # (N, C)

    def __init__(self, samples: int, classes: int, kept: float) -> None:
        """`kept` in [0, 1) is the share of the average that stays at each update."""
        super().__init__()
        self.kept = kept
        self.register_buffer("values", torch.zeros(samples, classes))

    @torch.no_grad()
    def update(self, index: Tensor, probabilities: Tensor) -> Tensor:
        """Take in new answers (B, C) of the samples int64 (B,): their averages after it (B, C)."""
        found = torch.lerp(probabilities.float(), self.values[index], self.kept)
        self.values[index] = found
        return found


class PredictionHistory(nn.Module):
    """The last K answers: a new one takes the place of the oldest. NaN where there were not so many yet."""

    values: Tensor  # (K, N, C)

    def __init__(self, samples: int, classes: int, length: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((length, samples, classes), torch.nan))

    @torch.no_grad()
    def write(self, epoch: int, index: Tensor, probabilities: Tensor) -> None:
        """The answers (B, C) of one epoch to the samples int64 (B,), over those of K epochs before."""
        self.values[epoch % len(self.values)][index] = probabilities.float()

    def mean(self) -> Tensor:
        """Over what is remembered of each sample (N, C); NaN for samples never answered."""
        return self.values.nanmean(dim=0)
