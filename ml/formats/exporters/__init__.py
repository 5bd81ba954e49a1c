"""The formats of exports: a file in this folder is one, its file name the public name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Literal, Protocol, cast, get_args

from ml.formats.export_archive import ExportFile
from ml.formats.export_source import ExportSource

Format = Literal["coco", "csv", "fiftyone", "huggingface", "imagefolder", "labelstudio", "webdataset"]
FORMATS: tuple[Format, ...] = get_args(Format)


class Exporter(Protocol):
    """The names every file in this folder exports.

    Attributes:
        ABOUT: What reads the format, for the documentation.
        CONTAINER: What the files are packed in.
    """

    ABOUT: str
    CONTAINER: Literal["zip", "tar"]

    def files(self, source: ExportSource) -> Iterator[ExportFile]:
        """The files of an export, each name once; every call yields the same."""
        ...


def load(name: Format) -> Exporter:
    """The exporter of a format."""
    return cast("Exporter", importlib.import_module(f"{__name__}.{name}"))
