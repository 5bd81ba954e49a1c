"""A plain folder or an archive as tensors, for the command line: read by the same code as an upload to the service.

Besides what the service accepts, it reads data sets in the formats of their authors (`ml.data.published`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ml.data import decoding, ingest, pixel_file
from ml.data.dataset import LabeledImages, Truth, join, label_columns
from ml.data.decoding import Geometry, ImageArray, Resize
from ml.data.pixel_file import DecodedImage, ReadFile
from ml.data.published import find_published
from ml.data.published.published_dataset import PublishedDataset
from ml.data.published.source_files import SourceFiles
from ml.data.stored_rows import StoredRows
from ml.errors import Failure, UndecodableImage, UnusableData
from ml.formats.container import open_container
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import Layout, resolve_labels
from ml.formats.records import ImageRecord, ReportLine, Split
from ml.formats.table_columns import ColumnNames

OTHER_COLUMNS = ("unknown_column", "ambiguous_label_column")  # the codes with which the next choice of columns is tried
T = TypeVar("T")


class LoadedDataset(NamedTuple):
    """A data set whose pixels lie in a file without a name.

    Args:
        images: What is learned from.
        truth: What is measured by.
        names: Paths of the images to learn from, in their order.
        report: What was left out, ignored or looks wrong.
    """

    images: LabeledImages
    truth: Truth
    names: tuple[str, ...]
    report: tuple[ReportLine, ...]


def load_container(
    path: Path,
    *,
    image_size: int,
    resize: Resize = "squash",
    columns: Sequence[ColumnNames] = (ColumnNames(),),
    folder: Path | None = None,
) -> LoadedDataset:
    """Load the images and labels of a folder or an archive. Each image is decoded once; none stays in memory.

    Args:
        path: A folder, a zip, or a tar that may be compressed by gzip or zstd.
        image_size: Pixels of a side.
        resize: How an image is made square.
        columns: Choices of the columns of its table. The first whose columns are there is taken.
        folder: Has the disk space for the pixels of all images; None takes the system's for temporary files.

    Raises:
        UnusableData: For the codes see `layout.resolve_labels`, `container.open_container` and `ingest.check_usable`.
    """
    try:
        container = open_container(path)
        with container.reader() as read:
            published = find_published(SourceFiles(container.entries, read))
            if published is not None:
                return _load_published(published, columns, image_size, resize, folder)
            layout = _first_choice(columns, lambda names: resolve_labels(container, names))
            return _load_layout(layout, read, image_size, resize, folder)
    except DatasetFormatError as error:
        raise UnusableData.from_format_error(error, path) from error


def _first_choice(columns: Sequence[ColumnNames], attempt: Callable[[ColumnNames], T]) -> T:
    """The result of the first choice of columns that are there; the error of the last."""
    for names in columns[:-1]:
        try:
            return attempt(names)
        except (DatasetFormatError, Failure) as error:
            if error.code not in OTHER_COLUMNS:
                raise
    return attempt(columns[-1])


def _load_layout(layout: Layout, read: ReadFile, image_size: int, resize: Resize, folder: Path | None) -> LoadedDataset:
    images, results = ingest.sort_images(layout.images), list[DecodedImage]()

    def decode() -> Iterator[ImageArray]:
        square = np.empty((image_size, image_size, 3), np.uint8)
        for image in images:
            results.append(pixel_file.decode_square(read, image, square, resize))
            if results[-1].fault is None:
                yield square[None]

    squares = StoredRows.write_unnamed(decode(), image_size, folder)
    usable, lines = ingest.split_decoded(images, results)
    ingest.check_usable(len(images), usable, lines)
    labeled, truth = join(label_columns(usable), squares, layout.classes)
    return LoadedDataset(labeled, truth, _train_paths(usable), (*lines, *layout.report))


def _load_published(
    dataset: PublishedDataset, columns: Sequence[ColumnNames], image_size: int, resize: Resize, folder: Path | None
) -> LoadedDataset:
    """The images in the order of their files; one without a label or that cannot be decoded is left out."""
    given, clean = _first_choice(columns, dataset.columns)
    classes = tuple(sorted({label for labels in (given, clean or ()) for label in labels if label}))
    ids: dict[str, int | None] = {name: number for number, name in enumerate(classes)} | {"": None}
    report = [ReportLine(path, "missing_image", reason, "excluded") for path, reason in dataset.left_out]
    images: list[ImageRecord] = []

    def decode() -> Iterator[ImageArray]:
        for number in sorted(range(len(dataset.names)), key=lambda index: dataset.splits[index] != "train"):
            path, split = dataset.names[number], _split(dataset.splits[number])
            truth = clean[number] if clean is not None else ""
            if not (given[number] or (split == "test" and truth)):
                report.append(ReportLine(path, "unlabelled_row", "no label", "excluded"))
                continue
            try:
                pixels = dataset.pixels(number)
            except (UndecodableImage, DatasetFormatError, OSError) as error:
                report.append(ReportLine(path, "damaged_image", str(error), "excluded"))
                continue
            geometry = Geometry(pixels.shape[1], pixels.shape[0], image_size, resize)
            images.append(ImageRecord(path, split, ids[given[number]], ids[truth], 0, 0, False, 0))
            yield decoding.resize(pixels, geometry)[None]

    squares = StoredRows.write_unnamed(decode(), image_size, folder)
    ingest.check_usable(len(images), images, report)
    labeled, truths = join(label_columns(images), squares, classes)
    return LoadedDataset(labeled, truths, _train_paths(images), tuple(report))


def _split(name: str) -> Split:
    return "train" if name == "train" else "test"


def _train_paths(images: Sequence[ImageRecord]) -> tuple[str, ...]:
    return tuple(image.path for image in images if image.split == "train")
