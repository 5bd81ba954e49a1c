"""A data set as its format gives it: a name, a split and labels for each picture, and a way to its pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ml.errors import UnusableData

DEFAULT = "label"


@dataclass(frozen=True)
class Pictures:
    """All sequences are as long as there are pictures. Labels are class names, "" where unknown.

    `truths` names, for a column of given labels, the column that is true; any other column is its own truth, and the
    test pictures have labels in true columns alone.
    """

    names: Sequence[str]  # unique, as paths with an ending
    splits: Sequence[str]  # train or test
    labels: Mapping[str, Sequence[str]]
    pixels: Callable[[int], NDArray[np.uint8]]  # of the picture with this number: (H, W, 3); UndecodableImage, OSError
    encoded: Callable[[int], bytes]  # the same as a file
    truths: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def columns(self, asked: str | None) -> tuple[Sequence[str], Sequence[str] | None]:
        """The labels to learn from, and the true ones where those are others; UnusableData (wrong_columns)."""
        column = asked or DEFAULT
        if column not in self.labels:
            wanted = f"there are no labels {column!r}" if asked else "there are several labels to learn from"
            hint = f"name one with --label-column: {', '.join(self.labels)}"
            raise UnusableData(wanted, hint=hint, code="wrong_columns")
        truth = self.truths.get(column)
        return self.labels[column], None if truth is None else self.labels[truth]
