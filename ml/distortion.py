"""Strong distortion of images for consistency training: Cutout (DeVries and Taylor 2017) of half the side.

It knows neither labels nor epochs. Shapes: `B` images, `S` side; uint8 (B, S, S, 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

HOLE_SHARE = 2  # a hole is a square of S // 2: 16 of 32 pixels


def distorted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Another image of each, on the generator's device."""
    return cut_out(pixels, generator)


def cut_out(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A black square around a random pixel of each image, cut off at the border."""
    count, side = pixels.shape[:2]
    hole = side // HOLE_SHARE
    centres = torch.randint(0, side, (2, count, 1), generator=generator, device=pixels.device)
    places = torch.arange(side, device=pixels.device) - (centres - hole // 2)  # (2, B, S), from the hole's first pixel
    inside = (places >= 0) & (places < hole)
    covered = inside[0][:, :, None] & inside[1][:, None, :]
    return pixels.masked_fill(covered[..., None], 0)
