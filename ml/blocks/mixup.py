"""MixUp: convex pairs of images and of their targets (Zhang et al., ICLR 2018).

It knows no network and no loss. Shapes: `R` rows mixed with each other, `C` classes, images (R, 3, H, W), targets
(R, C) that sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_lambda(alpha: float, generator: torch.Generator) -> Tensor:
    """λ ~ Beta(alpha, alpha), a float32 scalar on the generator's device; for one batch there is one λ.

    Bailey's polar form of Student's t (Mathematics of Computation 62, 1994), mapped to the unit interval: exact for
    every alpha > 0, two uniform draws, no rejection - so every batch draws alike, on every device.
    """
    radius, angle = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).unbind()
    kept, along = radius.pow(1 / alpha), torch.cos(2 * math.pi * angle)
    off_centre: Tensor = along * (1 - kept).sqrt() / (kept + along.square() * (1 - kept)).sqrt()
    return (0.5 + 0.5 * off_centre).float()


def fold_lambda(share: Tensor) -> Tensor:
    """λ' = max(λ, 1 - λ): every mixture stays nearer to its own row (MixMatch Eq. 9, DivideMix Eq. 6)."""
    return torch.maximum(share, 1 - share)


def row_ids(groups: Sequence[Tensor]) -> Tensor:
    """Rows of several groups, one group behind the other, each by its samples' numbers int64 (r,): as int64 (R,).

    A sample has another number in every group, be that another view of it or another pool.
    """
    return torch.cat([len(groups) * group + place for place, group in enumerate(groups)])


def draw_partners(index: Tensor, generator: torch.Generator) -> Tensor:
    """A random permutation int64 (R,) on the generator's device: whom each row is mixed with.

    Drawn for the rows' numbers int64 (R,) and not for their places: in another order each is mixed with the same one.
    """
    order = index.argsort(stable=True)
    partner = torch.empty_like(order)
    partner[order] = order[torch.randperm(len(order), generator=generator, device=generator.device)]
    return partner


def dominant_rows(share: Tensor, partner: Tensor) -> Tensor:
    """int64 (R,): of which mixture each row is the larger part."""
    own = torch.arange(len(partner), device=partner.device)
    return torch.where(share >= 0.5, own, partner.argsort())


def mix(rows: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """share · row + (1 - share) · its partner: (R, ...) -> (R, ...)."""
    return rows[partner].lerp_(rows, share.to(rows.dtype))
