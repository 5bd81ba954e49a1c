"""A ready data set as tensors: given labels for training, the truth apart, and splits by seed.

What a method may see has no field for clean labels (law 7); `Truth` is for `ml.evaluation.measure` alone. Pixels stay
on disk, memory-mapped. Knows nothing of archives, tables or how the data set came to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ml.data import pixel_file
from ml.data.decoding import Resize
from ml.data.pixel_file import PixelFile, Progress
from ml.errors import UnusableData
from ml.formats import archive, dataset_index
from ml.formats.records import ImageRecord

UNKNOWN = -1


@dataclass(frozen=True)
class LabeledImages:
    """What is learned from.

    Attributes:
        images: uint8 (N, S, S, 3), maybe memory-mapped.
        labels: Given labels, int64 (N,), class ids.
        classes: Names by class id.
        digest: Of the data set; empty where it is not known.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Truth:
    """What results are measured by.

    Attributes:
        train_clean: Clean labels of the training images, int64 (N,), -1 where unknown; None if all are unknown.
        test_images: uint8 (T, S, S, 3); None where there is no test set.
        test_labels: int64 (T,): the clean labels where known, else the given ones; None where there is no test set.
    """

    train_clean: Tensor | None
    test_images: Tensor | None
    test_labels: Tensor | None


def load(
    folder: Path, *, image_size: int, resize: Resize = "squash", threads: int = 1, progress: Progress = pixel_file.quiet
) -> tuple[LabeledImages, Truth]:
    """Load a ready data set.

    Args:
        folder: The data set.
        image_size: Pixels of a side. Pixels of a size that is not there yet are made and kept.
        resize: How an image is made square.
        threads: At most so many decode at a time.
        progress: See `pixel_file.decode_all`; called only while pixels are made.

    Raises:
        UnusableData: dataset_corrupt, where images can no longer be read.
    """
    images = dataset_index.read_images(folder)
    squares = _load_pixels(folder, images, image_size, resize, threads, progress)
    if len(squares) != len(images):
        raise UnusableData(f"{len(squares)} squares of pixels for {len(images)} images", code="dataset_corrupt")
    classes, digest = tuple(dataset_index.read_classes(folder)), dataset_index.read_facts(folder)["digest"]
    return join(images, squares, classes, digest)


def join(
    images: Sequence[ImageRecord], squares: Tensor, classes: tuple[str, ...], digest: str = ""
) -> tuple[LabeledImages, Truth]:
    """Images and their pixels as what is learned from and what is measured by.

    Args:
        images: N images; those of the train split come first.
        squares: Their pixels, uint8 (N, S, S, 3).
        classes: Names by class id.
        digest: Of the data set, where it is known.
    """
    train = [image for image in images if image.split == "train"]
    test = [image.given if image.clean is None else image.clean for image in images[len(train) :]]
    has_clean = any(image.clean is not None for image in train)
    labeled = LabeledImages(squares[: len(train)], _ids([image.given for image in train]), classes, digest)
    truth = Truth(
        train_clean=_ids([image.clean for image in train]) if has_clean else None,
        test_images=squares[len(train) :] if test else None,
        test_labels=_ids(test) if test else None,
    )
    return labeled, truth


def split(n: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out random samples.

    Args:
        n: Number of samples.
        fraction: Share that is held out, in [0, 1). Unless it is 0, each part has at least one of two or more samples.
        seed: Determines the choice.

    Returns:
        Ascending indices, int64, of the samples that stay and of those held out.

    Raises:
        ValueError: `fraction` is out of its range.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must be in [0, 1), not {fraction}")
    held_out = 0 if fraction == 0 or n < 2 else min(max(1, round(n * fraction)), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


def _load_pixels(
    folder: Path, images: Sequence[ImageRecord], size: int, resize: Resize, threads: int, progress: Progress
) -> Tensor:
    """The pixels of all images, made where they are not there yet."""
    target = dataset_index.pixels_path(folder, size, resize)
    if not target.exists():
        with archive.reader(folder / dataset_index.ARCHIVE_FILE) as read, PixelFile(target, size) as file:
            results = pixel_file.decode_all(read, images, file, resize=resize, threads=threads, progress=progress)
            if bad := [image.path for image, result in zip(images, results, strict=True) if result.fault]:
                raise UnusableData(f"{len(bad)} images can no longer be read, first {bad[0]}", code="dataset_corrupt")
    # Copy on write: torch wants memory it may write to, the file must never change.
    return torch.from_numpy(np.load(target, mmap_mode="c", allow_pickle=False))


def _ids(labels: list[int | None]) -> Tensor:
    return torch.tensor([UNKNOWN if label is None else label for label in labels], dtype=torch.int64)
