"""Subsets with the same number of samples of every class, drawn anew for each epoch, as studies of Clothing1M use.

Shapes: `N` samples, `n` of them in a subset.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class BalancedSubset(nn.Module):
    """Positions of equally many samples of every class. Samples of smaller classes are repeated."""

    labels: Tensor
    positions: Tensor  # int64 (n,): the subset drawn last, a buffer since an epoch may be resumed

    def __init__(self, labels: Tensor, size: int) -> None:
        """Fix the size of the subsets.

        Args:
            labels: given labels int64 (N,).
            size: samples in a subset, rounded up to a multiple of the number of classes that have samples.
        """
        super().__init__()
        self.register_buffer("labels", labels, persistent=False)
        self._classes: list[int] = labels.unique().tolist()  # type: ignore[no-untyped-call]
        self._per_class = math.ceil(size / len(self._classes))
        self.register_buffer("positions", torch.zeros(self._per_class * len(self._classes), dtype=torch.int64))

    def draw(self, generator: torch.Generator) -> None:
        """Replace `positions` by another subset; `generator` is on the labels' device."""
        drawn = [self._draw_class(number, generator) for number in self._classes]
        self.positions.copy_(torch.cat(drawn))

    def _draw_class(self, number: int, generator: torch.Generator) -> Tensor:
        members = (self.labels == number).nonzero()[:, 0]
        rounds = math.ceil(self._per_class / len(members))
        shuffled = [
            members[torch.randperm(len(members), generator=generator, device=members.device)] for _ in range(rounds)
        ]
        return torch.cat(shuffled)[: self._per_class]
