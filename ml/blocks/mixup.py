"""MixUp: convex combinations of pairs of images and of their targets (Zhang et al., ICLR 2018).

Shapes: `R` rows that are mixed with each other, `C` classes; images (R, 3, H, W), targets (R, C) that sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MIXING = "mixing"  # the concern by whose generator methods draw λ and partners


def draw_mixing(
    alpha: float, index: Tensor, generator: torch.Generator, *, folded: bool = False
) -> tuple[Tensor, Tensor]:
    """Draw how the rows of a batch are mixed: λ, one for all of them, and the partner of each.

    Args:
        alpha: as of `draw_lambda`.
        index: ids of the rows, as of `draw_partners`.
        generator: on the device of `index`.
        folded: fold λ by `fold_lambda`.

    Returns:
        λ, an f32 scalar, and partners int64 (R,).
    """
    share = draw_lambda(alpha, generator)
    return fold_lambda(share) if folded else share, draw_partners(index, generator)


def draw_lambda(alpha: float, generator: torch.Generator) -> Tensor:
    """Draw λ ~ Beta(alpha, alpha), one for a whole batch: an f32 scalar on the generator's device.

    By Bailey's polar form of Student's t (Mathematics of Computation 62, 1994), mapped to the unit interval. It is
    exact for every alpha and takes two uniform draws without rejection, so every batch draws alike on every device.

    Args:
        alpha: above 0; 1 is uniform, large values are near 1/2.
        generator: on the device of the images.
    """
    radius, angle = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).unbind()
    power, cosine = radius.pow(1 / alpha), torch.cos(2 * math.pi * angle)
    off_centre: Tensor = cosine * (1 - power).sqrt() / (power + cosine.square() * (1 - power)).sqrt()
    return (0.5 + 0.5 * off_centre).float()


def fold_lambda(share: Tensor) -> Tensor:
    """λ' = max(λ, 1 - λ), so that a mixture is nearer to its own row (MixMatch Eq. 9, DivideMix Eq. 6)."""
    return torch.maximum(share, 1 - share)


def row_ids(groups: Sequence[Tensor]) -> Tensor:
    """One id int64 (R,) for each row of several concatenated groups, by sample and group.

    Args:
        groups: positions of the samples in each group, int64 (r,). A sample may be in several groups, as another view
            or in another pool, and has another id in each.
    """
    return torch.cat([len(groups) * group + place for place, group in enumerate(groups)])


def draw_partners(index: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the row that each row is mixed with: a permutation int64 (R,).

    The draw is by the rows' ids and not by their places, so in another order each row has the same partner.

    Args:
        index: ids of the rows, int64 (R,).
        generator: on the device of `index`.
    """
    order = index.argsort(stable=True)
    partner = torch.empty_like(order)
    partner[order] = order[torch.randperm(len(order), generator=generator, device=generator.device)]
    return partner


def dominant_rows(share: Tensor, partner: Tensor) -> Tensor:
    """For each row the mixture in which it has the larger share: int64 (R,)."""
    own = torch.arange(len(partner), device=partner.device)
    return torch.where(share >= 0.5, own, partner.argsort())


def mix(rows: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """share · row + (1 - share) · partner's row.

    Args:
        rows: images or targets, (R, ...).
        share: λ, a scalar or one that broadcasts over the rows.
        partner: int64 (R,).
    """
    return rows[partner].lerp_(rows, share.to(rows.dtype))
