"""CIFAR-10 and CIFAR-100 once their files are read, with the human labels of CIFAR-N where their file is there.

Images and human labels are in the order of the files, one training batch after the other. Knows no file format.

Shapes: `N` images; planes uint8 (N, 3072), red, green and blue of 32 rows each; labels int64 (N,).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml.data.published import pickles
from ml.data.published.published_dataset import DEFAULT, PublishedDataset
from ml.data.published.source_files import SourceFiles
from ml.errors import UnusableData

SIDE = 32
PLANES = 3 * SIDE * SIDE
COARSE = "coarse_label"
CLEAN = "clean"
HUMAN = {"": "CIFAR-10_human.pt", COARSE: "CIFAR-100_human.pt"}  # by the column that only CIFAR-100 has


class CifarBatch(NamedTuple):
    """The images of one file.

    Args:
        split: train or test.
        planes: Their pixels, uint8 (N, 3072).
        numbers: Their class numbers (N,) by column: `label`, and in CIFAR-100 `coarse_label`.
    """

    split: str
    planes: NDArray[np.uint8]
    numbers: Mapping[str, NDArray[np.int64]]


def check_batch(
    split: str, planes: Any, numbers: Mapping[str, Any], names: Mapping[str, Sequence[str]], file: str
) -> CifarBatch:
    """A batch whose shapes and numbers are right.

    Args:
        split: train or test.
        planes: Anything that a file held as its pixels.
        numbers: Anything that it held as class numbers, by column.
        names: Class names by column and number.
        file: Its name, for messages.

    Raises:
        UnusableData: dataset_corrupt.
    """
    pixels = np.asarray(planes)
    columns = {column: np.asarray(values) for column, values in numbers.items()}
    fits = pixels.dtype == np.uint8 and pixels.ndim == 2 and pixels.shape[1] == PLANES
    for column, values in columns.items():
        fits &= values.dtype.kind in "iu" and values.shape == pixels.shape[:1]
        fits = bool(fits and (len(values) == 0 or 0 <= values.min() <= values.max() < len(names[column])))
    if not fits:
        raise UnusableData(f"{file} is not a batch of 32 px images with their labels", code="dataset_corrupt")
    return CifarBatch(split, pixels, {column: values.astype(np.int64) for column, values in columns.items()})


def join_batches(
    batches: Sequence[CifarBatch], names: Mapping[str, Sequence[str]], source: SourceFiles
) -> PublishedDataset:
    """The whole data set.

    Args:
        batches: In the order of the data set.
        names: Class names by column and number.
        source: Where the file of human labels may lie, in any folder.

    Raises:
        UnusableData: labels_disagree, unreadable_pickle or unsafe_pickle, where human labels are there.
    """
    planes = np.concatenate([one.planes for one in batches])
    splits = [one.split for one in batches for _ in one.planes]
    numbers = {column: np.concatenate([one.numbers[column] for one in batches]) for column in names}
    labels = {column: [names[column][number] for number in values] for column, values in numbers.items()}
    counters = {"train": 0, "test": 0}
    files = []
    for split in splits:
        files.append(f"{split}/{counters[split]:05}.png")
        counters[split] += 1
    truths: dict[str, str] = {}
    if (human := _human(source, COARSE if COARSE in names else "")) is not None:
        labels, truths = _with_human(human, labels, names, counters["train"], splits)

    def pixels(number: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(planes[number].reshape(3, SIDE, SIDE).transpose(1, 2, 0))

    def encoded(number: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels(number)).save(buffer, "PNG")
        return buffer.getvalue()

    return PublishedDataset(files, splits, labels, pixels, encoded, truths)


def _human(source: SourceFiles, kind: str) -> dict[str, Any] | None:
    """The arrays of CIFAR-10N or CIFAR-100N (Wei et al. 2022), if their file is there."""
    path = next((name for name in source.names if name.rsplit("/", 1)[-1] == HUMAN[kind]), None)
    return None if path is None else pickles.read_zipped(source.read(path), path)


def _with_human(
    human: Mapping[str, Any],
    labels: Mapping[str, list[str]],
    names: Mapping[str, Sequence[str]],
    train: int,
    splits: Sequence[str],
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The columns with the original labels as `clean` and the human ones added; and the clean column of each of those.

    UnusableData (labels_disagree) unless the file's own clean labels are those of the data set, image by image.
    """
    rows = [row for row, split in enumerate(splits) if split == "train"]
    known = {CLEAN: DEFAULT} | ({f"{CLEAN}_coarse": COARSE} if COARSE in names else {})
    columns = {column: list(labels[original]) for column, original in known.items()}
    truths = {}
    for key, values in human.items():
        truth = f"{CLEAN}_coarse" if "coarse" in key else CLEAN
        classes = names[known[truth]]
        numbers = np.asarray(values)
        if (
            numbers.shape != (train,)
            or numbers.dtype.kind not in "iu"
            or not 0 <= numbers.min() <= numbers.max() < len(classes)
        ):
            raise UnusableData(f"the human labels {key!r} do not fit {train} images", code="labels_disagree")
        column = [""] * len(splits)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            column[row] = classes[number]
        if key.startswith("clean"):
            if any(column[row] != columns[truth][row] for row in rows):
                raise UnusableData(
                    "the human labels belong to other images, or to another order of these", code="labels_disagree"
                )
        else:
            columns[key], truths[key] = column, truth
    if not any(key.startswith("clean") for key in human):
        raise UnusableData("the human labels come without the clean ones to check them by", code="labels_disagree")
    return columns, truths
