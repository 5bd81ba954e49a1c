"""A ready data set as tensors: given labels for training, the truth apart, and splits by seed.

What a method may see has no field for clean labels (law 7); `Truth` is for `ml.evaluation.measure` alone. Pixels stay
on disk. Knows nothing of archives, tables or how the data set came to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ml.data import pixel_file
from ml.data.decoding import Resize
from ml.data.pixel_file import PixelFile, Progress
from ml.data.stored_rows import Rows, StoredRows
from ml.errors import UnusableData
from ml.formats import archive, dataset_index, label_versions
from ml.formats.records import NO_LABEL, ImageRecord, LabelColumns

UNKNOWN = NO_LABEL


class Selection(NamedTuple):
    """The images of a split that are used, where a version of the labels excludes some.

    What is computed of an image and kept is computed of all images, so that it outlives edits of labels.
    """

    whole: Rows  # uint8 (W, S, S, 3), all images of the split
    positions: Tensor  # int64 (N,), ascending: those that are used


@dataclass(frozen=True)
class LabeledImages:
    """What is learned from.

    Attributes:
        images: uint8 (N, S, S, 3), in memory or in a file.
        labels: Given labels, int64 (N,), class ids.
        classes: Names by class id.
        digest: Of the data set; empty where it is not known.
        confirmed: bool (N,), whether a person has confirmed the label; None where nobody has confirmed any.
        selection: How `images` were chosen; None where none are excluded.
    """

    images: Rows
    labels: Tensor
    classes: tuple[str, ...]
    digest: str = ""
    confirmed: Tensor | None = None
    selection: Selection | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Truth:
    """What results are measured by.

    Attributes:
        train_clean: Clean labels of the training images, int64 (N,), -1 where unknown; None if all are unknown.
        test_images: uint8 (T, S, S, 3), in memory or in a file; None where there is no test set.
        test_labels: int64 (T,): the clean labels where known, else the given ones; None where there is no test set.
        test_selection: How the test images were chosen; None where none are excluded.
    """

    train_clean: Tensor | None
    test_images: Rows | None
    test_labels: Tensor | None
    test_selection: Selection | None = None


def load(
    folder: Path,
    *,
    version: int = label_versions.UPLOADED,
    image_size: int,
    resize: Resize = "squash",
    threads: int = 1,
    progress: Progress = pixel_file.quiet,
) -> tuple[LabeledImages, Truth]:
    """Load a ready data set. Images that the labels exclude are left out.

    Args:
        folder: The data set.
        version: Of its labels.
        image_size: Pixels of a side. Pixels of a size that is not there yet are made and kept.
        resize: How an image is made square.
        threads: At most so many decode at a time.
        progress: See `pixel_file.decode_all`; called only while pixels are made.

    Raises:
        UnusableData: dataset_corrupt, where images can no longer be read.
    """
    labels = dataset_index.read_label_columns(folder, version)
    squares = _load_pixels(folder, image_size, resize, threads, progress)
    if len(squares) != len(labels.given):
        raise UnusableData(f"{len(squares)} squares of pixels for {len(labels.given)} images", code="dataset_corrupt")
    classes = tuple(dataset_index.read_classes(folder, version))
    return join(labels, squares, classes, dataset_index.read_facts(folder)["digest"])


def label_columns(images: Sequence[ImageRecord]) -> LabelColumns:
    """The labels of images, those of the train split first."""
    given = [NO_LABEL if image.given is None else image.given for image in images]
    clean = [NO_LABEL if image.clean is None else image.clean for image in images]
    statuses = [image.status for image in images]
    excluded, confirmed = ([int(status == which) for status in statuses] for which in ("excluded", "confirmed"))
    return LabelColumns(given, clean, excluded, confirmed, sum(image.split == "train" for image in images))


def join(
    labels: LabelColumns, squares: StoredRows, classes: tuple[str, ...], digest: str = ""
) -> tuple[LabeledImages, Truth]:
    """Labels and pixels of images as what is learned from and what is measured by.

    Args:
        labels: Of N images.
        squares: Their pixels.
        classes: Names by class id.
        digest: Of the data set, where it is known.
    """
    given, clean = (torch.tensor(np.asarray(column, np.int64)) for column in (labels.given, labels.clean))
    excluded, confirmed = (torch.tensor(np.asarray(column, np.bool_)) for column in (labels.excluded, labels.confirmed))
    train, pixels, selection = _used(squares, excluded, range(labels.train))
    test, test_pixels, test_selection = _used(squares, excluded, range(labels.train, len(squares)))
    labeled = LabeledImages(
        pixels,
        given[train],
        classes,
        digest,
        confirmed[train] if bool(confirmed[train].any()) else None,
        selection,
    )
    has_clean = bool((clean[train] != UNKNOWN).any())
    truth = Truth(
        train_clean=clean[train] if has_clean else None,
        test_images=test_pixels if len(test) else None,
        test_labels=torch.where(clean[test] == UNKNOWN, given[test], clean[test]) if len(test) else None,
        test_selection=test_selection,
    )
    return labeled, truth


def _used(squares: StoredRows, excluded: Tensor, rows: range) -> tuple[Tensor, StoredRows, Selection | None]:
    """The images of a split that are not excluded bool (N,): their rows int64, and their pixels."""
    whole = squares.part(rows.start, rows.stop)
    positions = (~excluded[rows.start : rows.stop]).nonzero()[:, 0]
    if len(positions) == len(rows):
        return torch.arange(rows.start, rows.stop), whole, None
    return positions + rows.start, whole.select(positions), Selection(whole, positions)


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


def hold_out(images: LabeledImages, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out random images, the same ones whichever others the labels exclude: so jobs on two versions compare.

    Args:
        images: The images that are used.
        fraction: As of `split`.
        seed: Determines the choice.

    Returns:
        Ascending rows, int64, of the images that are trained on and of those held out.
    """
    if images.selection is not None:
        _, held_out = split(len(images.selection.whole), fraction, seed)
        is_held_out = torch.isin(images.selection.positions, held_out)
        rows = torch.arange(len(images))
        if not fraction or (bool(is_held_out.any()) and not bool(is_held_out.all())):
            return rows[~is_held_out], rows[is_held_out]
    return split(len(images), fraction, seed)


def _load_pixels(folder: Path, size: int, resize: Resize, threads: int, progress: Progress) -> StoredRows:
    """The pixels of all images, made where they are not there yet."""
    target = dataset_index.pixels_path(folder, size, resize)
    if not target.exists():
        images = dataset_index.read_images(folder)
        with archive.reader(folder / dataset_index.ARCHIVE_FILE) as read, PixelFile(target, size) as file:
            results = pixel_file.decode_all(read, images, file, resize=resize, threads=threads, progress=progress)
            if bad := [image.path for image, result in zip(images, results, strict=True) if result.fault]:
                raise UnusableData(f"{len(bad)} images can no longer be read, first {bad[0]}", code="dataset_corrupt")
    return StoredRows.open(target)
