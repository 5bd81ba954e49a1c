"""Whether the images of a training are held in memory or streamed from disk: by their size and the memory that is free.

Both stores make the same batches bit for bit, so this is no part of the spec, and a resumed training may choose anew.

Shapes: `N` images of the set, `T` test images, `S` side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ml.data.dataset import LabeledImages, Truth
from ml.data.image_store import PADDED_BYTES, ImageStore, ImageViews
from ml.data.streamed_store import StreamedStore

RESIDENT_SHARE = 0.5  # of the free memory: what images may take of it. Networks, steps and results need the rest


class StoreChoice(NamedTuple):
    """How the images of a training are held."""

    streamed: bool
    image_bytes: int  # of all N + T images
    free_bytes: int  # of the device, before images were put there

    def explain(self) -> str:
        """Why the images are streamed, as a sentence for the user."""
        size, free = self.image_bytes / 1e9, self.free_bytes / 1e9
        return f"The images take {size:.1f} GB, {free:.1f} GB of memory are free: they are read while they are needed."


def choose(
    images: LabeledImages, truth: Truth | None, device: torch.device, free: int, resident_bytes: int | None = None
) -> StoreChoice:
    """Stream what takes more than `RESIDENT_SHARE` of the memory that is free.

    Args:
        images: The N images.
        truth: The T test images, if there are any.
        device: Where batches are needed.
        free: Bytes of its memory.
        resident_bytes: What images may take, instead of that share; None for the share.
    """
    test = None if truth is None else truth.test_images
    image_bytes = images.images.nbytes + (0 if test is None else test.nbytes)
    most = RESIDENT_SHARE * free if resident_bytes is None else resident_bytes
    # nothing is gained where the host's memory holds the images anyhow
    can_stream = device.type != "cpu" or images.stored is not None
    return StoreChoice(can_stream and image_bytes > most, image_bytes, free)


def build(
    images: LabeledImages, truth: Truth | None, mean: Tensor, std: Tensor, device: torch.device, choice: StoreChoice
) -> tuple[ImageViews, ImageViews | None]:
    """The stores of the N images and of the test set, normalised by `mean` and `std` (3,)."""
    test = None if truth is None else truth.test_images
    if choice.streamed:
        train = StreamedStore(images.stored or images.images, mean, std, device=device)
        if truth is None or test is None:
            return train, None
        return train, StreamedStore(truth.test_stored or test, mean, std, device=device)
    padded_bytes = PADDED_BYTES if device.type == "cpu" else (choice.free_bytes - choice.image_bytes) // 2
    resident = ImageStore(images.images, mean, std, device=device, padded_bytes=padded_bytes)
    return resident, None if test is None else resident.with_images(test)
