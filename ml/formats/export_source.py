"""The images of one version of the labels, as exporters read them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ml.formats import dataset_index, image_query
from ml.formats.records import ImageRecord, Split

PAGE_IMAGES = 2000  # read from the index at a time, so that memory does not grow with the data set


class ExportImage(NamedTuple):
    """An image with its labels as text.

    Args:
        record: The image as it was uploaded.
        label: The given label in this version; None only in the test split.
        clean: The clean label, where it is known.
        uploaded: The given label of the upload.
        action: What was decided about the label: unreviewed, confirmed or relabelled.
    """

    record: ImageRecord
    label: str | None
    clean: str | None
    uploaded: str | None
    action: str

    @property
    def target(self) -> str | None:
        """The label for formats that have one label an image: a test image without a given label has a clean one."""
        return self.clean if self.label is None else self.label


@dataclass(frozen=True)
class ExportSource:
    """What an export is made of. It never changes: every reading of its images yields the same.

    Args:
        digest: Of the data set, as ingest measured it.
        version: Of the labels.
        classes: Their names, sorted.
        images: Starts a reading of the images without the excluded ones, in the order of their numbers.
    """

    digest: str
    version: int
    classes: tuple[str, ...]
    images: Callable[[], Iterator[ExportImage]]

    @functools.cached_property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have images."""
        present = {image.record.split for image in self.images()}
        splits: tuple[Split, ...] = ("train", "test")
        return tuple(split for split in splits if split in present)

    @functools.cached_property
    def has_clean(self) -> bool:
        """Whether any image has a clean label."""
        return any(image.clean is not None for image in self.images())

    def of_split(self, split: Split) -> Iterator[ExportImage]:
        """The images of one split."""
        return (image for image in self.images() if image.record.split == split)


def read_version(folder: Path, version: int) -> ExportSource:
    """The images and labels of a version.

    Args:
        folder: The data set, which is ready.
        version: Of its labels; see `ml.formats.label_versions`.
    """
    classes = dataset_index.read_classes(folder, version)
    names: dict[int | None, str | None] = {**dict(enumerate(classes)), None: None}
    uploaded_classes = dataset_index.read_classes(folder)
    uploaded_names: dict[int | None, str | None] = {**dict(enumerate(uploaded_classes)), None: None}

    def images() -> Iterator[ExportImage]:
        after = -1
        while page := _read_page(folder, version, after):
            for *fields, uploaded in page:
                record = ImageRecord(*fields)
                given, clean = names[record.given], names[record.clean]
                yield ExportImage(record, given, clean, uploaded_names[uploaded], record.status)
                after = record.number

    return ExportSource(str(dataset_index.read_facts(folder)["digest"]), version, tuple(classes), images)


def _read_page(folder: Path, version: int, after: int) -> list[tuple[Any, ...]]:
    """The fields of the next images that are not excluded, and the class id that each was uploaded with."""
    columns = f"{image_query.IMAGE_COLUMNS}, u.given"
    tables = 'labelled i JOIN main.image u ON u."index" = i."index"'
    where = """i."index" > ? AND i.status != 'excluded'"""
    query = f'SELECT {columns} FROM {tables} WHERE {where} ORDER BY i."index" LIMIT ?'  # noqa: S608  # of names of our own
    with dataset_index.open_index(folder, version) as index:
        return index.execute(query, (after, PAGE_IMAGES)).fetchall()
