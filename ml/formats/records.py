"""An image of a data set, a line of its report, and the names of splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, NoReturn

from ml.formats.entries import Entry
from ml.formats.errors import DatasetFormatError

NO_LABEL = -1
Split = Literal["train", "test"]
Level = Literal["excluded", "warning", "ignored"]

SPLITS: dict[str, str] = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
"""The split that the name of a folder or a table, or a value of the column `split`, means; in lower case."""


class ImageRecord(NamedTuple):
    """An image of a data set: its labels, where its bytes lie, and - once it has been decoded - what it is.

    Args:
        path: Its name in the container.
        split: Which part of the data it belongs to.
        given: Class id of the given label; None only in the test split.
        clean: Class id of the clean label; None where it is unknown.
        offset: See `entries.Entry`, as for the next four.
        stored_bytes: See `offset`.
        deflated: See `offset`. The index holds it as 0 or 1.
        image_bytes: See `offset`.
        crc: See `offset`. None in the index: it is checked once, by ingest.
        number: The index of the image in the data set, from 0; -1 before ingest.
        width: Pixels, upright; 0 before ingest, as the height.
        height: See `width`.
        sha256: Of the file, in hexadecimal digits; empty before ingest.
        format: JPEG, PNG, WEBP, BMP or GIF; empty before ingest.
        status: What edits have made of its label; see `label_versions.LabelStatus`.
    """

    path: str
    split: Split
    given: int | None
    clean: int | None
    offset: int
    stored_bytes: int
    deflated: bool | int
    image_bytes: int
    crc: int | None = None
    number: int = -1
    width: int = 0
    height: int = 0
    sha256: str = ""
    format: str = ""
    status: str = "unreviewed"


class LabelColumns(NamedTuple):
    """The labels of images, a value for each in the order of their numbers: a tenth of the memory of `ImageRecord`.

    Args:
        given: Class ids of the given labels; `NO_LABEL` where there is none.
        clean: Likewise of the clean labels.
        excluded: 1 where the status of the label is `excluded`, else 0.
        confirmed: 1 where it is `confirmed`, else 0.
        train: How many images the train split has; they come first.
    """

    given: Sequence[int]
    clean: Sequence[int]
    excluded: Sequence[int]
    confirmed: Sequence[int]
    train: int


class LabeledEntry(NamedTuple):
    """A file of a container with its labels as text. `split` is train, test or val."""

    entry: Entry
    split: str
    given: str | None
    clean: str | None


class ReportLine(NamedTuple):
    """Something about a file that its owner should know.

    Args:
        path: The file, or the class.
        code: What it is, in snake_case.
        detail: The same as a sentence.
        level: excluded (an image that is left out), warning, or ignored (a file that is no image).
        number: Its position in the report of a ready data set, from 1; 0 before.
    """

    path: str
    code: str
    detail: str
    level: Level
    number: int = 0


def reject(code: str, detail: str, location: str | None = None) -> NoReturn:
    """Refuse the data set; for the arguments see `errors.DatasetFormatError`."""
    raise DatasetFormatError(code, detail, location)
