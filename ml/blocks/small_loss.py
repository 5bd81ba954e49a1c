"""Small-loss selection: networks fit clean labels first, so the small losses of a batch are mostly clean ones'.

Nothing here waits for the device, since the number of selected samples is known beforehand.

Shapes: `B` batch, `k` selected samples.
"""

from __future__ import annotations

import math

from torch import Tensor

ROUNDING = 1e-9  # 0.55 * 100 is 55.00000000000001


def forget_rate(epoch: int, full: float, gradual: int) -> float:
    """R(t) of Co-teaching and JoCoR, the share of a batch that is left out.

    As released, linspace(0, full, gradual): epoch `gradual` - 1 is the first with the full rate.

    Args:
        epoch: t, from 0.
        full: the rate that is reached, in [0, 1).
        gradual: epochs over which it grows in equal steps.
    """
    return full * min(1.0, epoch / max(gradual - 1, 1))


def selected_count(rate: float, size: int) -> int:
    """⌊(1 - rate) · size⌋, at least 1: how many of `size` samples are selected."""
    return max(1, math.floor((1.0 - rate) * size + ROUNDING))


def smallest_losses(losses: Tensor, rate: float) -> Tensor:
    """Positions int64 (k,) of the losses (B,) that remain when the share `rate` with the largest ones is left out."""
    return losses.detach().topk(selected_count(rate, len(losses)), largest=False).indices
