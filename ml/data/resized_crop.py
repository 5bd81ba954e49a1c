"""Random resized crops (Szegedy et al., CVPR 2015): a random box of random size and shape, scaled to the whole side.

Boxes are drawn as torchvision's `RandomResizedCrop` draws them. Since a box lies within an image of the side that is
wanted, it is only ever enlarged, where bilinear interpolation needs no antialiasing.

Shapes: `N` stored images, `B` of one batch, `S` side; uint8 (., S, S, 3), or with more channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

RATIO = 4 / 3  # of width to height at most; at least its reciprocal
TRIES = 10  # of a box; if none fits, the whole image is taken


class Boxes(NamedTuple):
    """One box for each image of a batch, in whole pixels: int64 (B,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def draw_boxes(count: int, side: int, scale: float, generator: torch.Generator) -> Boxes:
    """Draw boxes whose share of the area is uniform, and whose shape is uniform in its logarithm.

    Args:
        count: B.
        side: S.
        scale: Smallest share of the image's area, in (0, 1]; the largest is 1.
        generator: On the device of the images.
    """
    # sizes: of `TRIES` the first that fits
    areas, shapes = torch.rand(2, TRIES, count, generator=generator, device=generator.device)
    root_area = (side**2 * (scale + (1 - scale) * areas)).sqrt()
    root_ratio = torch.exp((shapes - 0.5) * math.log(RATIO))
    heights, widths = ((root_area * factor).round().clamp_min(1) for factor in (1 / root_ratio, root_ratio))
    fits = (heights <= side) & (widths <= side)
    first = fits.int().argmax(dim=0, keepdim=True)  # of equal values the first
    height, width = (sizes.gather(0, first)[0].where(fits.any(dim=0), side) for sizes in (heights, widths))

    # corners: anywhere in the image
    down, right = torch.rand(2, count, generator=generator, device=generator.device)
    top, left = down * (side - height + 1), right * (side - width + 1)
    return Boxes(top.long(), left.long(), height.long(), width.long())


def crop(images: Tensor, rows: Tensor, boxes: Boxes) -> Tensor:
    """The boxes of some images, each enlarged to the side.

    Args:
        images: uint8 (N, S, S, 3).
        rows: int64 (B,).
        boxes: One for each row.

    Returns:
        uint8 (B, S, S, 3).
    """
    # torch enlarges bytes one by one four times faster than it samples a batch, but a GPU would be waited for
    return crop_each(images, rows, boxes) if images.device.type == "cpu" else crop_batch(images[rows], boxes)


def crop_each(images: Tensor, rows: Tensor, boxes: Boxes) -> Tensor:
    """`crop` image by image, in integers. See there for arguments and result."""
    side = images.shape[1]
    cropped = images.new_empty(len(rows), side, side, images.shape[3])
    numbers = (tensor.numpy().tolist() for tensor in (rows, *boxes))
    for place, (row, top, left, height, width) in enumerate(zip(*numbers, strict=True)):
        box = images[row, top : top + height, left : left + width].permute(2, 0, 1)[None]
        cropped[place] = functional.interpolate(box, size=(side, side), mode="bilinear")[0].permute(1, 2, 0)
    return cropped


def crop_batch(pixels: Tensor, boxes: Boxes) -> Tensor:
    """`crop` of whole images at once, in floats: uint8 (B, S, S, 3) of `pixels`, uint8 (B, S, S, 3)."""
    side = pixels.shape[1]
    x = _sampled_at(boxes.left, boxes.width, side)[:, None, :].expand(-1, side, -1)
    y = _sampled_at(boxes.top, boxes.height, side)[:, :, None].expand(-1, -1, side)
    planes = pixels.permute(0, 3, 1, 2).float()
    sampled = functional.grid_sample(planes, torch.stack([x, y], dim=3), align_corners=False)
    return sampled.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _sampled_at(begin: Tensor, length: Tensor, side: int) -> Tensor:
    """Where each pixel of an enlarged line comes from, as `grid_sample` counts: f32 (B, S), in [-1, 1].

    Args:
        begin: First pixel of each line, int64 (B,).
        length: Its pixels, int64 (B,).
        side: S.
    """
    middles = torch.arange(side, device=begin.device) + 0.5
    within = (middles * (length[:, None] / side) - 0.5).clamp_min(0).minimum(length[:, None] - 1.0)
    return (2 * (begin[:, None] + within) + 1) / side - 1
