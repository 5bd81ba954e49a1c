"""Foreground and background of an image, and the running average of the backgrounds of each given class.

The split follows DeNLL's Eq. 5 and its complementary reading; the class averages are the terms of Eq. 4. Nothing here
has parameters.

Shapes: `B` batch, `C` classes; images, foregrounds, backgrounds `(B, 3, H, W)`; masks `(B, 1, H, W)` in [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.blocks import losses


class ImageSplit(NamedTuple):
    """An image as foreground and background, (B, 3, H, W) each."""

    foreground: Tensor
    background: Tensor


def complement(images: Tensor, mask: Tensor) -> ImageSplit:
    """f = M·x and b = (1 - M)·x, whose sum is the image."""
    return ImageSplit(mask * images, images - mask * images)


def median(images: Tensor, mask: Tensor, *, by_channel: bool = False) -> ImageSplit:
    """Eq. 5 as printed: G_f = ReLU(M·I - m), G_b = ReLU(m - M·I), where m is the median of M·I.

    Their sum is |M·I - m|, which is |m| wherever the mask is 0, whatever the image shows there.

    Args:
        images: I, (B, 3, H, W).
        mask: M, (B, 1, H, W).
        by_channel: take the median over each channel; otherwise over the whole image.
    """
    masked = mask * images
    if by_channel:
        middle = masked.flatten(2).median(dim=2).values[:, :, None, None]
    else:
        middle = masked.flatten(1).median(dim=1).values[:, None, None, None]
    return ImageSplit(torch.relu(masked - middle), torch.relu(middle - masked))


def median_mask(images: Tensor, mask: Tensor, unit_images: Tensor) -> ImageSplit:
    """Eq. 5 as a selection of pixels: foreground is where the channel mean of M·I exceeds its median in the image.

    The binary mask has the gradient of the mask it was made from (straight-through).

    Args:
        images: what is split, (B, 3, H, W).
        mask: M, (B, 1, H, W).
        unit_images: I, the same images in [0, 1].
    """
    masked = (mask * unit_images).mean(dim=1, keepdim=True)
    binary = (masked > masked.flatten(1).median(dim=1).values[:, None, None, None]).float()
    return complement(images, binary + mask - mask.detach())


class UnitRange(nn.Module):
    """Scales normalised images back to [0, 1] by the smallest and largest value that each channel had in training.

    This undoes the normalisation once every channel has had a black and a white pixel.
    """

    darkest: Tensor  # f32 (1, 3, 1, 1)
    brightest: Tensor  # f32 (1, 3, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("darkest", torch.full((1, 3, 1, 1), torch.inf))
        self.register_buffer("brightest", torch.full((1, 3, 1, 1), -torch.inf))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same in [0, 1]; 0.5 everywhere before the first training step."""
        if self.training:
            self.darkest.copy_(torch.minimum(self.darkest, images.detach().amin(dim=(0, 2, 3), keepdim=True)))
            self.brightest.copy_(torch.maximum(self.brightest, images.detach().amax(dim=(0, 2, 3), keepdim=True)))
        unit = (images - self.darkest) / (self.brightest - self.darkest).clamp_min(1e-6)
        return unit.clamp(0, 1).nan_to_num(0.5)  # before the first training step the range is empty


class ClassBackgroundAverage(nn.Module):
    """The running average background of each given class; its mean over classes is b̄ of Eq. 4.

    Networks only ever see the mean over classes. The average of an image's own class would reveal the label that must
    be predicted.
    """

    averages: Tensor  # f32 (C, 3, H, W)
    known: Tensor  # bool (C,): classes that had an image so far

    def __init__(self, class_count: int, image_size: int, momentum: float) -> None:
        """Start without any class.

        Args:
            class_count: C.
            image_size: H = W in pixels.
            momentum: share of a class's average that stays at a batch with images of the class, in [0, 1).
        """
        super().__init__()
        self.momentum = momentum
        self.register_buffer("averages", torch.zeros(class_count, 3, image_size, image_size))
        self.register_buffer("known", torch.zeros(class_count, dtype=torch.bool))

    @torch.no_grad()
    def update(self, backgrounds: Tensor, labels: Tensor) -> None:
        """Move each class's average towards the class's mean in the batch, in f32; the first batch sets it.

        Args:
            backgrounds: (B, 3, H, W).
            labels: given labels int64 (B,).
        """
        # mean background of every class in the batch, by one matrix product
        members = losses.one_hot(labels, len(self.averages))  # (B, C)
        count = members.sum(dim=0)
        with torch.autocast(backgrounds.device.type, enabled=False):
            sums = members.T @ backgrounds.float().flatten(1)
        mean = (sums / count.clamp_min(1)[:, None]).view_as(self.averages)

        # classes without an image in the batch stay as they are
        present = (count > 0)[:, None, None, None]
        old = self.momentum * self.averages
        moved = torch.where(self.known[:, None, None, None], old + (1 - self.momentum) * mean, mean)
        self.averages.copy_(torch.where(present, moved, self.averages))
        self.known.logical_or_(count > 0)

    def mean(self) -> Tensor:
        """b̄, (1, 3, H, W): uniform over the classes seen so far, the same in training and at test."""
        share = self.known.to(self.averages.dtype) / self.known.sum().clamp_min(1)
        return (share[:, None, None, None] * self.averages).sum(dim=0, keepdim=True)
