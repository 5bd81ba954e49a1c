"""A data set as its authors publish it: a name, a split and labels for each image, and functions to its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ml.errors import UnusableData
from ml.formats.table_columns import ColumnNames

DEFAULT = "label"


@dataclass(frozen=True)
class PublishedDataset:
    """All sequences have one item an image.

    Args:
        names: Unique, as paths with an ending.
        splits: train or test.
        labels: Class names by column, "" where a label is unknown. Test images have labels in clean columns alone.
        pixels: A function from the number of an image to its pixels, uint8 (H, W, 3); it raises UndecodableImage,
            OSError or DatasetFormatError.
        encoded: The same as the bytes of an image file.
        truths: For a column of given labels, the column of clean ones. A column that is no key is clean itself.
        left_out: Images that are listed and not there: name and reason.
    """

    names: Sequence[str]
    splits: Sequence[str]
    labels: Mapping[str, Sequence[str]]
    pixels: Callable[[int], NDArray[np.uint8]]
    encoded: Callable[[int], bytes]
    truths: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()

    def columns(self, names: ColumnNames) -> tuple[Sequence[str], Sequence[str] | None]:
        """The labels to learn from, and the clean ones where those are others.

        Args:
            names: The columns that the user named. The clean column follows from the format unless it is named.

        Raises:
            UnusableData: unknown_column, or ambiguous_label_column where there are several and none is named.
        """
        for name in (names.label, names.clean):
            if name is not None and name not in self.labels:
                raise UnusableData(f"there are no labels {name!r}", hint=self._hint(), code="unknown_column")
        label = names.label or DEFAULT
        if label not in self.labels:
            detail = "there are several labels to learn from"
            raise UnusableData(detail, hint=self._hint(), code="ambiguous_label_column")
        clean = names.clean or self.truths.get(label)
        return self.labels[label], None if clean is None else self.labels[clean]

    def _hint(self) -> str:
        return f"name one with --label-column: {', '.join(self.labels)}"
