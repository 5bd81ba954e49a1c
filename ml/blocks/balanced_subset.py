"""Subsets that show every class equally often, drawn anew for each epoch (what Clothing1M's studies train on)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class BalancedSubset(nn.Module):
    """Positions of as many samples of every class; those of a class that has fewer are repeated."""

    positions: Tensor  # int64 (n,): the subset drawn last, a buffer since an epoch may be resumed

    def __init__(self, labels: Tensor, size: int) -> None:
        """Given labels int64 (N,); `size` is rounded up to as many of each class that there is."""
        super().__init__()
        self.register_buffer("labels", labels, persistent=False)
        self._classes: list[int] = labels.unique().tolist()  # type: ignore[no-untyped-call]
        self._each = math.ceil(size / len(self._classes))
        self.register_buffer("positions", torch.zeros(self._each * len(self._classes), dtype=torch.int64))

    def draw(self, generator: torch.Generator) -> None:
        """Another subset; `generator` is on the labels' device."""
        drawn = [self._of(number, generator) for number in self._classes]
        self.positions.copy_(torch.cat(drawn))

    def _of(self, number: int, generator: torch.Generator) -> Tensor:
        assert isinstance(self.labels, Tensor)
        members = (self.labels == number).nonzero()[:, 0]
        rounds = math.ceil(self._each / len(members))
        shuffled = [
            members[torch.randperm(len(members), generator=generator, device=members.device)] for _ in range(rounds)
        ]
        return torch.cat(shuffled)[: self._each]
