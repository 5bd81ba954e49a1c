"""Makes batches of stored images, cropped, mirrored and normalised as tensors; and holds a set of them on a device.

`ml.data.streamed_store` makes the same batches, bit for bit, of a set that lies on disk.

Shapes: `N` images, `B` rows of one batch, `S` side; stored uint8 (N, S, S, 3), delivered float (B, 3, S, S) in
channels_last layout, normalised per channel.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from ml.data import augmentation, autoaugment, resized_crop
from ml.data.augmentation import Augmentation
from ml.data.stored_rows import Rows

SHIFT_SHARE = 8  # random crops shift by up to S // 8: the usual 4 pixels at 32
PADDED_BYTES = 1 << 30  # up to this size, a padded copy of the set is kept; else every batch is padded
SAMPLE_ROWS = 2048  # enough images for a channel mean to three digits
SMALLEST_STD = 1 / 255  # a channel that never varies must not divide by zero
EVAL_IMAGES = 512  # of one batch without gradients: more than that brings no speed
EVAL_PIXELS = EVAL_IMAGES * 32 * 32  # of such a batch on a CPU: bounded at any image size
EVAL_PIXEL_BYTES = 16 * 1024  # of a GPU's memory for each pixel: five times what ResNet-50, the largest tried, needs


class ImageViews(ABC):
    """Views of N images, wherever these are.

    Attributes:
        side: S.
        shift: Pixels by which a random crop moves at most.
        mean, std: Of each channel in [0, 1], (3,).
        device: Where batches are needed.
    """

    def __init__(self, side: int, mean: Tensor, std: Tensor, device: torch.device) -> None:
        """Bind what all views have in common; the arguments are the attributes of the same names."""
        self.side = side
        self.shift = self.side // SHIFT_SHARE
        self.mean, self.std = mean, std
        self.device = device
        # one factor for every pixel, because a broadcast over 3 channels is 20 times slower on a CPU
        self._scale = (1 / (255 * std)).float().repeat(self.side**2).to(device)
        self._offset = (-mean / std).float().repeat(self.side**2).to(device)
        self._eval_batch_size = eval_batch_size(self.side, device_bytes(device))

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def raw(self, rows: Tensor) -> Tensor:
        """The stored bytes on the device, not to be changed: rows int64 (B,) -> uint8 (B, S, S, 3)."""

    @abstractmethod
    def read_ahead(self, batches: Iterable[Tensor]) -> None:
        """Say which batches will be asked for next; see `ml.data.input_store.InputStore.read_ahead`."""

    def unaugmented(self, rows: Tensor) -> Tensor:
        """Normalised images without augmentation: rows int64 (B,) -> (B, 3, S, S)."""
        return self._normalised(self.raw(rows))

    def eval_batch_size(self) -> int:
        """Images of a batch without gradients: more than in training, with a bounded number of pixels."""
        return self._eval_batch_size

    def augmented(
        self, rows: Tensor, kind: Augmentation, generator: torch.Generator, *, strongly: bool = False
    ) -> Tensor:
        """A random view of each image.

        Args:
            rows: int64 (B,).
            kind: What a view is.
            generator: Draws the views, on the store's device.
            strongly: The strong view of `ml.data.autoaugment`: its operations come first, its hole last.

        Returns:
            (B, 3, S, S), normalised.
        """
        started = autoaugment.auto_augment(self.raw(rows), generator) if strongly else None
        moved = self._crop_and_flip(rows, kind, generator, instead=started)
        view = self._normalised(kind.change_pixels(moved, generator))
        return autoaugment.cut_out(view, generator) if strongly else view

    def augmented_with_masks(
        self, rows: Tensor, masks: Tensor, kind: Augmentation, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A random weak view of each image, and a mask that is cropped and mirrored with it.

        Args:
            rows: int64 (B,).
            masks: Of these images, f32 (B, 1, S, S) in [0, 1]; 0 is what comes from outside of an image.
            kind: What a view is.
            generator: Draws the views, on the store's device; the same as in `augmented`.

        Returns:
            (B, 3, S, S), normalised, and masks f32 (B, 1, S, S).
        """
        mask_bytes = (255 * masks).round_().to(torch.uint8).permute(0, 2, 3, 1)
        moved = self._crop_and_flip(rows, kind, generator, instead=torch.cat([self.raw(rows), mask_bytes], dim=3))
        view = self._normalised(kind.change_pixels(moved[..., :3].contiguous(), generator))
        return view, moved[..., 3:].permute(0, 3, 1, 2).float() / 255

    def _crop_and_flip(
        self, rows: Tensor, kind: Augmentation, generator: torch.Generator, instead: Tensor | None
    ) -> Tensor:
        """Randomly cropped and mirrored: the stored images of `rows`, or `instead` uint8 (B, S, S, channels)."""
        if kind.geometry == "crop_flip":
            corners = torch.randint(0, 2 * self.shift + 1, (2, len(rows)), generator=generator, device=self.device)
            pixels = self._cropped(rows, corners, instead)
        elif kind.geometry == "resized_crop_flip":
            boxes = resized_crop.draw_boxes(len(rows), self.side, kind.crop_scale, generator)
            pixels = self._cropped_and_resized(rows, boxes, instead)
        else:
            pixels = self.raw(rows) if instead is None else instead
        return pixels if kind.geometry == "none" else augmentation.mirror(pixels, generator)

    def _cropped(self, rows: Tensor, corners: Tensor, instead: Tensor | None) -> Tensor:
        """Padded with zeros by `shift` and cropped at `corners` int64 (2, B): uint8 (B, S, S, channels)."""
        padded = self._pad(self.raw(rows) if instead is None else instead)
        return self._windows(padded, torch.arange(len(rows), device=self.device), corners)

    def _cropped_and_resized(self, rows: Tensor, boxes: resized_crop.Boxes, instead: Tensor | None) -> Tensor:
        """The boxes of the images, enlarged: uint8 (B, S, S, channels)."""
        pixels = self.raw(rows) if instead is None else instead
        return resized_crop.crop(pixels, torch.arange(len(rows), device=self.device), boxes)

    def _windows(self, padded: Tensor, rows: Tensor, corners: Tensor) -> Tensor:
        windows = padded.unfold(1, self.side, 1).unfold(2, self.side, 1)  # (N, 2p + 1, 2p + 1, channels, S, S), no copy
        return windows[rows, corners[0], corners[1]].permute(0, 2, 3, 1).contiguous()  # lies in this order already

    def _pad(self, images: Tensor) -> Tensor:
        p = self.shift
        return torch.nn.functional.pad(images, (0, 0, p, p, p, p))

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> float (B, 3, S, S), channels_last without a copy."""
        flat = pixels.reshape(len(pixels), -1).float().mul_(self._scale).add_(self._offset)
        return flat.view(len(pixels), self.side, self.side, 3).permute(0, 3, 1, 2)


class ImageStore(ImageViews):
    """A set of N images on a device. A CPU leaves memory-mapped ones where they are."""

    def __init__(
        self, images: Tensor, mean: Tensor, std: Tensor, *, device: torch.device, padded_bytes: int = PADDED_BYTES
    ) -> None:
        """Move the images to the device.

        Args:
            images: uint8 (N, S, S, 3), maybe memory-mapped. On a CPU they are copied only when they are padded.
            mean: Mean of each channel in [0, 1], (3,).
            std: Standard deviation of each channel, (3,).
            device: Where batches are needed.
            padded_bytes: Keep a padded copy of the set if it is not larger.
        """
        super().__init__(int(images.shape[1]), mean, std, device)
        self._padded_bytes = padded_bytes
        self._images = images.to(device)
        self._padded: Tensor | None = None

    def __len__(self) -> int:
        return len(self._images)

    def with_images(self, images: Tensor) -> ImageStore:
        """A store of other images, uint8 (T, S, S, 3), with this one's statistics and device; made in no time."""
        store = copy.copy(self)
        store._images, store._padded = images.to(self.device), None
        return store

    def raw(self, rows: Tensor) -> Tensor:
        """The stored bytes: rows int64 (B,) -> uint8 (B, S, S, 3)."""
        return self._images[rows]

    def read_ahead(self, batches: Iterable[Tensor]) -> None:
        """Nothing is read."""

    def _cropped(self, rows: Tensor, corners: Tensor, instead: Tensor | None) -> Tensor:
        padded = self._all_padded() if instead is None else None
        return super()._cropped(rows, corners, instead) if padded is None else self._windows(padded, rows, corners)

    def _cropped_and_resized(self, rows: Tensor, boxes: resized_crop.Boxes, instead: Tensor | None) -> Tensor:
        if instead is None:  # without a copy of whole images first
            return resized_crop.crop(self._images, rows, boxes)
        return super()._cropped_and_resized(rows, boxes, instead)

    def _all_padded(self) -> Tensor | None:
        """The whole set, padded at the first call, if it is small enough; a GPU then frees the unpadded copy."""
        if self._padded is None and self._fits_padded():
            self._padded = self._pad(self._images)
            inner = slice(self.shift, self.shift + self.side)
            self._images = self._padded[:, inner, inner]
        return self._padded

    def _fits_padded(self) -> bool:
        padded_bytes = len(self._images) * (self.side + 2 * self.shift) ** 2 * 3
        return padded_bytes <= self._padded_bytes


def eval_batch_size(side: int, memory_bytes: int | None) -> int:
    """Images of a batch without gradients.

    Args:
        side: Of the images, in pixels.
        memory_bytes: Of the GPU that computes; None on a CPU, whose speed does not depend on it.
    """
    images = EVAL_PIXELS // side**2
    if memory_bytes is not None:
        images = max(images, min(EVAL_IMAGES, memory_bytes // EVAL_PIXEL_BYTES // side**2))
    return max(2, images)


def device_bytes(device: torch.device) -> int | None:
    """The memory of a GPU in bytes, free or not, so that batches are the same at each run; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def statistics(images: Rows, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], of up to `SAMPLE_ROWS` evenly spread images.

    Args:
        images: uint8 (N, S, S, 3).
        rows: The images to choose from, int64 (M,).

    Returns:
        Two float64 tensors (3,).
    """
    sample = rows[evenly(len(rows), SAMPLE_ROWS)]
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for chunk in torch.split(sample, 64):
        values = images[chunk].reshape(-1, 3).double() / 255
        total += values.sum(dim=0)
        squares += values.square().sum(dim=0)
    count = len(sample) * images.shape[1] * images.shape[2]
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=SMALLEST_STD**2).sqrt()


def evenly(count: int, most: int) -> Tensor:
    """Up to `most` of the numbers 0 to `count - 1`, evenly spread and ascending: int64."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def step_count(rows: int, batch_size: int) -> int:
    """Steps of an epoch over `rows` images, at least 1. A last batch of one image joins the batch before."""
    return max(1, math.ceil((rows - 1) / batch_size))


def batch_rows(order: Tensor, step: int, batch_size: int) -> Tensor:
    """The images of one step of an epoch.

    Args:
        order: All images of the epoch, int64 (n,). A single one is shown twice: batch normalisation needs two.
        step: Of the epoch, from 0.
        batch_size: Images of a step.
    """
    if len(order) == 1:
        return order.repeat(2)
    last = step == step_count(len(order), batch_size) - 1
    return order[step * batch_size :] if last else order[step * batch_size : (step + 1) * batch_size]
