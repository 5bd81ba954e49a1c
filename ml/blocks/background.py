"""What an image is made of, given its mask, and the memory of what backgrounds each given class comes with.

The split follows DeNLL's Eq. 5 and its complementary reading; the bank holds the terms of Eq. 4. Nothing here learns.

Shapes: images, foregrounds, backgrounds `(B, 3, H, W)`; masks `(B, 1, H, W)` in [0, 1]; the bank `(C, 3, H, W)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.blocks import losses


class Split(NamedTuple):
    """An image as foreground and background."""

    foreground: Tensor
    background: Tensor


def complement(images: Tensor, mask: Tensor) -> Split:
    """f = M·x and b = (1 - M)·x: together the image again."""
    return Split(mask * images, images - mask * images)


def median(images: Tensor, mask: Tensor, *, by_channel: bool = False) -> Split:
    """Eq. 5 to the letter: G_f = ReLU(M·I - m), G_b = ReLU(m - M·I), m the median of M·I in the image or its channel.

    Together they are |M·I - m|: where the mask is 0 that is |m|, whatever lies there.
    """
    masked = mask * images
    if by_channel:
        middle = masked.flatten(2).median(dim=2).values[:, :, None, None]
    else:
        middle = masked.flatten(1).median(dim=1).values[:, None, None, None]
    return Split(torch.relu(masked - middle), torch.relu(middle - masked))


def median_mask(images: Tensor, mask: Tensor, unit_images: Tensor) -> Split:
    """Eq. 5 as a choice of pixels: foreground is where the mean of M·I over channels exceeds its median in the image.

    The gradient reaches the mask as if it had not been cut (straight-through).
    """
    masked = (mask * unit_images).mean(dim=1, keepdim=True)
    chosen = (masked > masked.flatten(1).median(dim=1).values[:, None, None, None]).float()
    return complement(images, chosen + mask - mask.detach())


class UnitRange(nn.Module):
    """Brings normalised images back to [0, 1] by the darkest and brightest value each channel has shown in training.

    Equal to undoing the normalisation as soon as the data have shown a black and a white pixel in each channel.
    """

    darkest: Tensor
    brightest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("darkest", torch.full((1, 3, 1, 1), torch.inf))
        self.register_buffer("brightest", torch.full((1, 3, 1, 1), -torch.inf))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.darkest.copy_(torch.minimum(self.darkest, images.detach().amin(dim=(0, 2, 3), keepdim=True)))
            self.brightest.copy_(torch.maximum(self.brightest, images.detach().amax(dim=(0, 2, 3), keepdim=True)))
        unit = (images - self.darkest) / (self.brightest - self.darkest).clamp_min(1e-6)
        return unit.clamp(0, 1).nan_to_num(0.5)  # before the first training step the range is empty


class ClassBackgroundAverage(nn.Module):
    """The running mean background of each given class; its uniform mean over classes is b̄ of Eq. 4.

    An image only ever meets the mean over classes, never its own class's entry: that would hand the network the very
    label it must learn without.
    """

    classes: Tensor
    known: Tensor

    def __init__(self, class_count: int, image_size: int, kept: float) -> None:
        """`kept`: the share of a class's entry that stays at each batch with the class."""
        super().__init__()
        self.kept = kept
        self.register_buffer("classes", torch.zeros(class_count, 3, image_size, image_size))
        self.register_buffer("known", torch.zeros(class_count, dtype=torch.bool))

    @torch.no_grad()
    def update(self, backgrounds: Tensor, labels: Tensor) -> None:
        """EMA of each class's batch mean, in f32; the first batch with a class sets its entry."""
        members = losses.one_hot(labels, len(self.classes))  # (B, C)
        count = members.sum(dim=0)
        with torch.autocast(backgrounds.device.type, enabled=False):
            sums = members.T @ backgrounds.float().flatten(1)
        mean = (sums / count.clamp_min(1)[:, None]).view_as(self.classes)
        shown = (count > 0)[:, None, None, None]
        moved = torch.where(self.known[:, None, None, None], self.kept * self.classes + (1 - self.kept) * mean, mean)
        self.classes.copy_(torch.where(shown, moved, self.classes))
        self.known.logical_or_(count > 0)

    def mean(self) -> Tensor:
        """b̄ (1, 3, H, W): uniform over the classes met so far, the same at training and at test."""
        share = self.known.to(self.classes.dtype) / self.known.sum().clamp_min(1)
        return (share[:, None, None, None] * self.classes).sum(dim=0, keepdim=True)
