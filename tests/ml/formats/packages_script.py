"""Reads an export with the package that its format is made for; runs in the environment `.venv-readers`.

Called with a format and the folder of the unpacked export (WebDataset: the tar itself). Prints JSON: split and label of
each image by the SHA-256 of its file. Knows nothing of this project.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

Rows = Iterator[tuple[bytes, str, str]]


def huggingface(export: Path) -> Rows:
    from datasets import Image, load_dataset

    for split, rows in load_dataset(str(export), cache_dir=str(export.parent / "cache")).items():
        names = rows.features["label"].names
        for row in rows.cast_column("image", Image(decode=False)):
            yield Path(row["image"]["path"]).read_bytes(), split, names[row["label"]]


def labelstudio(export: Path) -> Rows:
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    configuration = (export / "config.xml").read_text()
    interface = LabelInterface(configuration)
    interface.validate()
    for task in json.loads((export / "tasks.json").read_text()):
        assert interface.validate_task({"data": task["data"]})
        assert all(map(interface.validate_annotation, task["annotations"]))
    converted = export.parent / "converted"
    converter = Converter(configuration, project_dir=None, download_resources=False)
    converter.convert(str(export / "tasks.json"), str(converted), "JSON_MIN", is_dir=False)
    for item in json.loads((converted / "result.json").read_text()):
        path = unquote(item["image"].partition("?d=")[2])
        yield (export / path).read_bytes(), item["split"], item["label"]


def webdataset(export: Path) -> Rows:
    from webdataset import WebDataset

    for sample in WebDataset(str(export), shardshuffle=False):
        facts = json.loads(sample["json"])
        (image,) = (value for key, value in sample.items() if key in {"jpg", "png", "webp", "bmp", "gif"})
        assert sample["cls"].isdigit()
        yield image, sample["__key__"].partition("/")[0], facts["label"]


def coco(export: Path) -> Rows:
    from pycocotools.coco import COCO

    for file in (export / "annotations").iterdir():
        data = COCO(str(file))
        names = {category["id"]: category["name"] for category in data.loadCats(data.getCatIds())}
        for image in data.loadImgs(data.getImgIds()):
            (annotation,) = data.loadAnns(data.getAnnIds(imgIds=image["id"], areaRng=[0, 1e9], iscrowd=False))
            yield (export / image["file_name"]).read_bytes(), file.stem, names[annotation["category_id"]]


def csv(export: Path) -> Rows:
    from pandas import read_csv

    for row in read_csv(export / "labels.csv", dtype=str, keep_default_na=False).itertuples():
        yield (export / row.file).read_bytes(), row.split, row.label


if __name__ == "__main__":
    read = {reader.__name__: reader for reader in (huggingface, labelstudio, webdataset, coco, csv)}[sys.argv[1]]
    rows = {hashlib.sha256(image).hexdigest(): (split, label) for image, split, label in read(Path(sys.argv[2]))}
    print("\n" + json.dumps(rows))  # pycocotools prints as well
