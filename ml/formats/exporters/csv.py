"""Images under the paths of the upload, and one table `labels.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ml.formats import export_tables
from ml.formats.export_archive import ExportFile
from ml.formats.export_names import beside
from ml.formats.export_source import ExportImage, ExportSource

ABOUT = "Images under the paths of the upload and a table labels.csv; read by this service and by pandas."
CONTAINER: Literal["zip", "tar"] = "zip"
TABLE = "labels.csv"


def files(source: ExportSource) -> Iterator[ExportFile]:
    """The table, then the images."""

    def named() -> Iterator[tuple[str, ExportImage]]:
        return ((beside([TABLE], image.record.path, image.record), image) for image in source.images())

    yield ExportFile(TABLE, export_tables.csv_table(source, named))
    for path, image in named():
        yield ExportFile(path, image.record)
