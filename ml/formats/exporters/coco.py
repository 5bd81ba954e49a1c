"""COCO: `annotations/<split>.json` and images under the paths of the upload. Their annotation is the whole image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from ml.formats.export_archive import ExportFile
from ml.formats.export_names import beside
from ml.formats.export_source import ExportImage, ExportSource
from ml.formats.export_tables import json_document, label_facts, to_json
from ml.formats.records import ImageRecord, Split

ABOUT = "annotations/train.json, annotations/test.json and images; read by pycocotools and by this service."
CONTAINER: Literal["zip", "tar"] = "zip"
TABLES: dict[Split, str] = {"train": "annotations/train.json", "test": "annotations/test.json"}


def files(source: ExportSource) -> Iterator[ExportFile]:
    """The annotations of each split, then all images."""
    for split in source.splits:
        yield ExportFile(TABLES[split], _annotations(source, split))
    for image in source.images():
        yield ExportFile(_path(image.record), image.record)


def _path(image: ImageRecord) -> str:
    return beside(TABLES.values(), image.path, image)


def _annotations(source: ExportSource, split: Split) -> Callable[[], Iterator[bytes]]:
    categories = {name: number for number, name in enumerate(source.classes, 1)}  # COCO counts categories from 1

    def images() -> Iterator[str]:
        for image in source.of_split(split):
            record = image.record
            size = {"width": record.width, "height": record.height}
            yield to_json({"id": record.number, "file_name": _path(record), **size})

    def annotation(image: ExportImage) -> dict[str, object]:
        record = image.record
        return {
            "id": record.number + 1,  # pycocotools takes an id of 0 for none
            "image_id": record.number,
            "category_id": categories[image.target or ""],
            "bbox": [0, 0, record.width, record.height],
            "area": record.width * record.height,
            "iscrowd": 0,
            "attributes": label_facts(source, image),
        }

    return json_document(
        {
            "info": {"description": f"data set {source.digest}", "version": str(source.version)},
            "licenses": [],
            "categories": [{"id": number, "name": name} for name, number in categories.items()],
            "images": images,
            "annotations": lambda: (to_json(annotation(image)) for image in source.of_split(split)),
        }
    )
