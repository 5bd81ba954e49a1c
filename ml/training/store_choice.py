"""Whether the images of a training are held in memory or streamed from disk: by their size and the memory that is free.

Features of a frozen backbone are held or streamed by the same rule. Both ways make the same batches bit for bit, so
this is no part of the spec, and a resumed training may choose anew.

Shapes: `N` images of the set, `T` test images, `S` side.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ml.data.dataset import LabeledImages, Truth
from ml.data.image_store import PADDED_BYTES, ImageStore, ImageViews
from ml.data.stored_rows import in_memory
from ml.data.streamed_store import StreamedStore

RESIDENT_SHARE = 0.5  # of the free memory: what images may take of it. Networks, steps and results need the rest


class StoreChoice(NamedTuple):
    """How what a method sees of the images of a training is held."""

    streamed: bool
    held_bytes: int  # of all N + T images
    free_bytes: int  # of the device, before anything was put there
    what: Literal["images", "features of the images"] = "images"

    def explain(self) -> str:
        """Why they are streamed, as a sentence for the user."""
        size, free = self.held_bytes / 1e9, self.free_bytes / 1e9
        sizes = f"The {self.what} take {size:.1f} GB, {free:.1f} GB of memory are free"
        return f"{sizes}: they are read while they are needed."


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
    # nothing is gained where the host's memory holds the images anyhow
    can_stream = device.type != "cpu" or not isinstance(images.images, Tensor)
    return StoreChoice(can_stream and not _fit(image_bytes, free, resident_bytes), image_bytes, free)


def choose_for_features(nbytes: int, free: int, resident_bytes: int | None = None) -> StoreChoice:
    """The same for features in files, of `nbytes` together; other arguments as of `choose`."""
    return StoreChoice(not _fit(nbytes, free, resident_bytes), nbytes, free, "features of the images")


def _fit(nbytes: int, free: int, resident_bytes: int | None) -> bool:
    return nbytes <= (RESIDENT_SHARE * free if resident_bytes is None else resident_bytes)


def build(
    images: LabeledImages, truth: Truth | None, mean: Tensor, std: Tensor, device: torch.device, choice: StoreChoice
) -> tuple[ImageViews, ImageViews | None]:
    """The stores of the N images and of the test set, normalised by `mean` and `std` (3,)."""
    test = None if truth is None else truth.test_images
    if choice.streamed:
        train = StreamedStore(images.images, mean, std, device=device)
        return train, None if test is None else StreamedStore(test, mean, std, device=device)
    padded_bytes = PADDED_BYTES if device.type == "cpu" else (choice.free_bytes - choice.held_bytes) // 2
    resident = ImageStore(in_memory(images.images), mean, std, device=device, padded_bytes=padded_bytes)
    return resident, None if test is None else resident.with_images(in_memory(test))
