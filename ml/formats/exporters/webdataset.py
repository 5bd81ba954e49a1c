"""WebDataset: a tar of samples `train/00000017` with the parts `.jpg`, `.cls` (class id) and `.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ml.formats.export_archive import ExportFile
from ml.formats.export_source import ExportSource
from ml.formats.export_tables import label_facts, to_json

ABOUT = "One tar of samples train/00000017 with .jpg, .cls and .json; streamed by webdataset, read by this service."
CONTAINER: Literal["zip", "tar"] = "tar"
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}


def files(source: ExportSource) -> Iterator[ExportFile]:
    """The parts of each sample, one behind the other; training images first."""
    numbers = {name: number for number, name in enumerate(source.classes)}
    for image in source.images():
        record, label = image.record, image.target or ""
        key = f"{record.split}/{record.number:08d}"
        facts = {
            "index": record.number,
            "path": record.path,
            "split": record.split,
            "label": label,
            **label_facts(source, image),
        }
        yield ExportFile(f"{key}.{ENDINGS[record.format]}", record)
        yield ExportFile(f"{key}.cls", str(numbers[label]).encode())
        yield ExportFile(f"{key}.json", to_json(facts).encode())
