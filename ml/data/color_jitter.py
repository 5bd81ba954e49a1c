"""Colour jitter: brightness, contrast, saturation and hue of each image change at random, in this order.

All four together are one affine map of each pixel's three values. Factors are drawn as torchvision's `ColorJitter`
draws them, and hue in the proportion of SimCLR (Chen et al., ICML 2020). Unlike there, the order is fixed, values are
cut off once at the end, and hue turns about the grey axis (in YIQ).

Shapes: `B` images, `S` side; uint8 (B, S, S, 3).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ml.data.autoaugment import GREY

HUE_SHARE = 0.25  # of the strength: SimCLR has 0.8 s for brightness, contrast and saturation, and 0.2 s for hue
YIQ = (GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # rows: luminance and two axes of colour, of RGB


class Factors(NamedTuple):
    """How each image of a batch changes: f32 (B,)."""

    brightness: Tensor  # times all values
    contrast: Tensor  # times the distance from the mean grey
    saturation: Tensor  # times the distance from the pixel's own grey
    hue: Tensor  # turns by so many times the whole circle


def jitter(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change the colours of each image at random.

    Args:
        pixels: uint8 (B, S, S, 3) on the generator's device.
        strength: In [0, 1]. Factors lie in 1 ± strength, hue turns by up to a quarter of it either way.
        generator: Draws the factors.

    Returns:
        uint8 (B, S, S, 3).
    """
    return adjust(pixels, draw_factors(len(pixels), strength, generator))


def draw_factors(count: int, strength: float, generator: torch.Generator) -> Factors:
    """Draw the factors of `count` images, each uniformly; arguments as of `jitter`."""
    uniform = torch.rand(4, count, generator=generator, device=generator.device) * 2 - 1
    brightness, contrast, saturation, hue = strength * uniform
    return Factors(1 + brightness, 1 + contrast, 1 + saturation, HUE_SHARE * hue)


def adjust(pixels: Tensor, factors: Factors) -> Tensor:
    """Change the colours of each image of `pixels`, uint8 (B, S, S, 3), by its factors: uint8 (B, S, S, 3)."""
    values = pixels.flatten(1, 2).float()  # (B, S * S, 3)
    axes = _axes(pixels.device)
    brightness, contrast, saturation = (factor[:, None, None] for factor in factors[:3])

    # x -> matrix · x + offset, matrices (B, 3, 3); contrast is about the mean grey of the brightened image
    mean_grey = (values.mean(dim=1) @ axes.grey)[:, None, None] * brightness
    turned = _hue_rotations(factors.hue, axes) @ torch.lerp(axes.grey.expand(3, 3), axes.identity, saturation)
    matrix = turned * (brightness * contrast)
    offset = turned.sum(dim=2)[:, None] * (1 - contrast) * mean_grey

    adjusted = torch.baddbmm(offset, values, matrix.mT)
    return adjusted.round_().clamp_(0, 255).to(torch.uint8).view_as(pixels)


class _Axes(NamedTuple):
    """Constants: weights of red, green and blue in grey (3,); the identity, RGB to YIQ and back, (3, 3)."""

    grey: Tensor
    identity: Tensor
    to_yiq: Tensor
    from_yiq: Tensor


@functools.cache
def _axes(device: torch.device) -> _Axes:
    to_yiq = torch.tensor(YIQ, dtype=torch.float64)
    constants = (to_yiq[0], torch.eye(3), to_yiq, torch.linalg.inv(to_yiq))
    return _Axes(*(constant.float().to(device) for constant in constants))


def _hue_rotations(hue: Tensor, axes: _Axes) -> Tensor:
    """Rotations of RGB about the grey axis, (B, 3, 3), by hue (B,) in turns."""
    cos, sin = (2 * math.pi * hue).cos(), (2 * math.pi * hue).sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = ((one, zero, zero), (zero, cos, sin), (zero, -sin, cos))  # from red towards yellow
    rotations = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    return axes.from_yiq @ rotations @ axes.to_yiq
