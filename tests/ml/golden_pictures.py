"""Pictures that a formula draws, for logits that were computed elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor


def waves(side: int) -> Tensor:
    """Two pictures f32 (2, 3, side, side) in [-1, 1]: waves of other lengths and directions in each channel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phases = [(3 + n) * x / 17 + (5 - n) * y / 13 + n for n in range(6)]
    return torch.stack([torch.sin(phase.double()) for phase in phases]).reshape(2, 3, side, side).float()
