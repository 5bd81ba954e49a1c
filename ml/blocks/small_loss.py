"""Small-loss selection: networks learn clean labels first, so a batch's small losses are mostly those of clean ones.

Knows numbers alone, no network; nothing in it waits for the device, since how many are kept is known beforehand.
"""

from __future__ import annotations

import math

from torch import Tensor

ROUNDING = 1e-9  # 0.55 * 100 is 55.00000000000001


def forget_rate(epoch: int, full: float, gradual: int) -> float:
    """R(t) of Co-teaching and JoCoR: from 0 in epoch 0 up to `full`, in equal steps over `gradual` epochs; then `full`.

    linspace(0, full, gradual), as released: epoch `gradual` - 1 is the first with the full rate.
    """
    return full * min(1.0, epoch / max(gradual - 1, 1))


def kept_count(rate: float, size: int) -> int:
    """⌊(1 - rate) · size⌋, at least 1: how many of a batch are learned from."""
    return max(1, math.floor((1.0 - rate) * size + ROUNDING))


def smallest_losses(losses: Tensor, rate: float) -> Tensor:
    """Positions int64 (k,) of the losses (B,) that remain once a share `rate` of the largest is set aside."""
    return losses.detach().topk(kept_count(rate, len(losses)), largest=False).indices
