"""CIFAR-10 and CIFAR-100 once their files are read, and human labels beside them: the order of both is that of the
files, training batches one after the other. Knows no file format.

Shapes: `N` pictures; planes uint8 (N, 3072), red, green and blue of 32 rows each; labels int64 (N,).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml.errors import UnusableData
from ml.layouts import pickles
from ml.layouts.pictures import DEFAULT, Pictures
from ml.layouts.source import Source

SIDE = 32
PLANES = 3 * SIDE * SIDE
COARSE = "coarse_label"
CLEAN = "clean"
HUMAN = {"": "CIFAR-10_human.pt", COARSE: "CIFAR-100_human.pt"}  # by the column that only CIFAR-100 has


class Batch(NamedTuple):
    """A file: its pictures, and the class numbers of each by column (`label`, and `coarse_label` of CIFAR-100)."""

    split: str
    planes: NDArray[np.uint8]
    numbers: Mapping[str, NDArray[np.int64]]


def batch(split: str, planes: Any, numbers: Mapping[str, Any], names: Mapping[str, Sequence[str]], file: str) -> Batch:
    """A checked batch: values may be anything a file held; UnusableData (dataset_corrupt)."""
    pixels = np.asarray(planes)
    columns = {column: np.asarray(values) for column, values in numbers.items()}
    fits = pixels.dtype == np.uint8 and pixels.ndim == 2 and pixels.shape[1] == PLANES
    for column, values in columns.items():
        fits &= values.dtype.kind in "iu" and values.shape == pixels.shape[:1]
        fits = bool(fits and (len(values) == 0 or 0 <= values.min() <= values.max() < len(names[column])))
    if not fits:
        raise UnusableData(f"{file} is not a batch of 32 px pictures with their labels", code="dataset_corrupt")
    return Batch(split, pixels, {column: values.astype(np.int64) for column, values in columns.items()})


def pictures(batches: Sequence[Batch], names: Mapping[str, Sequence[str]], source: Source) -> Pictures:
    """The whole set, with the human labels that lie anywhere in the source."""
    planes = np.concatenate([each.planes for each in batches])
    splits = [each.split for each in batches for _ in each.planes]
    numbers = {column: np.concatenate([each.numbers[column] for each in batches]) for column in names}
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

    return Pictures(files, splits, labels, pixels, encoded, truths)


def _human(source: Source, kind: str) -> dict[str, Any] | None:
    """The arrays of CIFAR-10N or CIFAR-100N (Wei et al. 2022), if their file is there."""
    path = next((name for name in source.names() if name.rsplit("/", 1)[-1] == HUMAN[kind]), None)
    return None if path is None else pickles.read_zipped(source.read(path), path)


def _with_human(
    human: Mapping[str, Any],
    labels: Mapping[str, list[str]],
    names: Mapping[str, Sequence[str]],
    train: int,
    splits: Sequence[str],
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Columns of the original labels, now `clean`, and of the human ones; and which of those are which's truth.

    UnusableData (labels_disagree) unless the file's own clean labels are those of the set, picture by picture.
    """
    rows = [row for row, split in enumerate(splits) if split == "train"]
    known = {CLEAN: DEFAULT} | ({f"{CLEAN}_coarse": COARSE} if COARSE in names else {})
    found = {column: list(labels[original]) for column, original in known.items()}
    truths = {}
    for key, values in human.items():
        truth = f"{CLEAN}_coarse" if "coarse" in key else CLEAN
        classes = names[known[truth]]
        given = np.asarray(values)
        if (
            given.shape != (train,)
            or given.dtype.kind not in "iu"
            or not 0 <= given.min() <= given.max() < len(classes)
        ):
            raise UnusableData(f"the human labels {key!r} do not fit {train} pictures", code="labels_disagree")
        column = [""] * len(splits)
        for row, number in zip(rows, given.tolist(), strict=True):
            column[row] = classes[number]
        if key.startswith("clean"):
            if any(column[row] != found[truth][row] for row in rows):
                raise UnusableData(
                    "the human labels belong to other pictures, or to another order of these", code="labels_disagree"
                )
        else:
            found[key], truths[key] = column, truth
    if not any(key.startswith("clean") for key in human):
        raise UnusableData("the human labels come without the clean ones to check them by", code="labels_disagree")
    return found, truths
