"""Images under the paths of the upload, and one table `labels.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ml.formats import export_tables
from ml.formats.export_archive import ExportFile
from ml.formats.export_source import ExportImage, ExportSource

ABOUT = "Images under the paths of the upload and a table labels.csv; read by this service and by pandas."
CONTAINER: Literal["zip", "tar"] = "zip"


def files(source: ExportSource) -> Iterator[ExportFile]:
    """The table, then the images."""

    def named() -> Iterator[tuple[str, ExportImage]]:
        return ((image.record.path, image) for image in source.images())

    yield ExportFile("labels.csv", export_tables.csv_table(source, named))
    for image in source.images():
        yield ExportFile(image.record.path, image.record)
