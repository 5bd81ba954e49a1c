"""Composites of DeNLL's Eq. 4 in pixels: the object of an image before the mean background of all classes.

Masks are Gaussians (Eq. 5). A background alone, with the object's place filled by the mean background, is what is left
of an image when nothing of the object can be seen. Images may be normalised, in [0, 1] or in [0, 255]: results are in
the same range.

Shapes: `B` batch, `C` classes, `S` side; images, backgrounds and composites (B, 3, S, S), gaussians (B, 3) in image
pixels, masks (B, 1, S, S), mean backgrounds b̄ (1, 3, S, S).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ml.blocks import background, localization

HOLE = 2.5  # times the Gaussian, clipped at 1: the hole also hides the object's edge, where the mask is 0.4 or more
LEAST_WEIGHT = 1e-3  # of a pixel over all images of a class; below, the mean of the class is not known there


def composite(images: Tensor, gaussians: Tensor, mean_background: Tensor) -> Tensor:
    """f + b̄, the input of g2, (B, 3, S, S): f = M·x and b̄ takes the share 1 - M that the mask leaves.

    Args:
        images: x, (B, 3, S, S).
        gaussians: of their objects, (B, 3).
        mean_background: b̄, (1, 3, S, S), from `mean_background`.
    """
    return blend(images, localization.gaussian_mask(gaussians, images.shape[2], images.shape[3]), mean_background)


def blend(images: Tensor, masks: Tensor, mean_background: Tensor) -> Tensor:
    """`composite` by masks (B, 1, S, S) in place of Gaussians."""
    masks = masks.to(images.dtype)
    return background.complement(images, masks).foreground + (1 - masks) * mean_background.to(images.dtype)


def background_alone(images: Tensor, gaussians: Tensor, mean_background: Tensor) -> Tensor:
    """The image without its object, (B, 3, S, S): b̄ fills a hole of 2.5 times the Gaussian, at most 1.

    Arguments as in `composite`.
    """
    mask = localization.gaussian_mask(gaussians, images.shape[2], images.shape[3])
    hole = (HOLE * mask).clamp(max=1).to(images.dtype)
    return background.complement(images, hole).background + hole * mean_background.to(images.dtype)


def mean_background(batches: Iterable[tuple[Tensor, Tensor, Tensor]], class_count: int) -> Tensor:
    """b̄: the uniform mean over classes of the mean background of each class, f32 (1, 3, S, S).

    A pixel of a class's background is the mean of its images, weighed by 1 - M. Sums are in f64, so that the result
    hardly depends on the size of the batches; one batch is in memory at a time.

    Args:
        batches: images (B, 3, S, S) of any dtype, gaussians (B, 3) and given labels int64 (B,). Classes without an
            image are left out.
        class_count: C.

    Raises:
        ValueError: if there is no batch.
    """
    sums: Tensor | None = None
    weights: Tensor | None = None
    for images, gaussians, labels in batches:
        mask = localization.gaussian_mask(gaussians, images.shape[2], images.shape[3]).double()
        outside = background.complement(images.double(), mask).background
        if sums is None or weights is None:
            sums = outside.new_zeros(class_count, *outside.shape[1:])
            weights = mask.new_zeros(class_count, *mask.shape[1:])
        sums.index_add_(0, labels, outside)
        weights.index_add_(0, labels, 1 - mask)
    if sums is None or weights is None:
        raise ValueError("no images to average")

    # where the objects of a class always stand, its background is not known: the mean of the other classes counts
    known = weights >= LEAST_WEIGHT  # (C, 1, S, S)
    by_class = torch.where(known, sums / weights.clamp_min(LEAST_WEIGHT), 0.0)
    mean = by_class.sum(dim=0, keepdim=True) / known.sum(dim=0, keepdim=True).clamp_min(1)
    return mean.float()
