"""FiftyOne's classification data sets: `<split>/data/` and `<split>/labels.json`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Literal

from ml.formats.export_archive import ExportFile
from ml.formats.export_names import UniqueNames, split_ending
from ml.formats.export_source import ExportImage, ExportSource
from ml.formats.export_tables import joined, json_array, to_json
from ml.formats.records import Split

ABOUT = "labels.json and data for each split; FiftyOne reads a split's folder as FiftyOneImageClassificationDataset."
CONTAINER: Literal["zip", "tar"] = "zip"


def files(source: ExportSource) -> Iterator[ExportFile]:
    """For each split its labels, then its images."""
    for split in source.splits:
        yield ExportFile(f"{split}/labels.json", functools.partial(_labels, source, split))
        for path, image in _name_images(source, split):
            yield ExportFile(f"{split}/data/{path}", image.record)


def _labels(source: ExportSource, split: Split) -> Iterator[bytes]:
    numbers = {name: number for number, name in enumerate(source.classes)}
    labels = (
        f"{to_json(split_ending(path)[0])}: {numbers[image.target or '']}"
        for path, image in _name_images(source, split)
    )
    start = f'{{\n"classes": {to_json(source.classes)},\n"labels": '
    return joined(itertools.chain([start], json_array(labels, "{}"), ["\n}\n"]))


def _name_images(source: ExportSource, split: Split) -> Iterator[tuple[str, ExportImage]]:
    """The images by the paths of the upload. FiftyOne tells them apart by the path without its ending."""
    names = UniqueNames()
    for image in source.of_split(split):
        stem, ending = split_ending(image.record.path)
        yield names.add(stem, image.record.number) + ending, image
