"""Label Studio: `tasks.json` with an annotation for each image, and its labelling configuration."""

from __future__ import annotations

import functools
import xml.sax.saxutils
from collections.abc import Iterator
from typing import Literal
from urllib.parse import quote

from ml.formats.export_archive import ExportFile
from ml.formats.export_names import beside
from ml.formats.export_source import ExportImage, ExportSource
from ml.formats.export_tables import joined, json_array, label_facts, to_json
from ml.formats.records import ImageRecord

ABOUT = "tasks.json, config.xml and images; imported by Label Studio with local file serving, and by this service."
CONTAINER: Literal["zip", "tar"] = "zip"
CONFIGURATION, TASKS = "config.xml", "tasks.json"
NOT_IN_XML = dict.fromkeys((0xFFFE, 0xFFFF), "\ufffd")  # of what a class name may hold
LOCAL_FILES = "/data/local-files/?d="


def files(source: ExportSource) -> Iterator[ExportFile]:
    """The configuration, the tasks, then the images."""
    yield ExportFile(CONFIGURATION, _configuration(source).encode())
    yield ExportFile(TASKS, functools.partial(_tasks, source))
    for image in source.images():
        yield ExportFile(_path(image.record), image.record)


def _path(image: ImageRecord) -> str:
    return beside([CONFIGURATION, TASKS], image.path, image)


def _configuration(source: ExportSource) -> str:
    values = (xml.sax.saxutils.quoteattr(name.translate(NOT_IN_XML)) for name in source.classes)
    choices = (f"    <Choice value={value}/>\n" for value in values)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="label" toName="image" choice="single">\n{"".join(choices)}  </Choices>\n</View>\n'
    )


def _tasks(source: ExportSource) -> Iterator[bytes]:
    return joined(json_array(to_json(_task(source, image)) for image in source.images()))


def _task(source: ExportSource, image: ExportImage) -> dict[str, object]:
    record = image.record
    value = {"choices": [image.target]}
    result = {"id": str(record.number), "from_name": "label", "to_name": "image", "type": "choices", "value": value}
    return {
        "id": record.number + 1,
        "data": {
            "image": LOCAL_FILES + quote(_path(record)),
            "index": record.number,
            "split": record.split,
            **label_facts(source, image),
        },
        "annotations": [{"id": record.number + 1, "result": [result]}],
    }
