"""Data sets to export, and what each format says of an image, read without the code that wrote it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ml.data import ingest
from ml.formats import csv_cells, dataset_index, label_versions
from ml.formats.archive import decompress, read_archive
from ml.formats.export import Export
from ml.formats.export_source import read_version
from ml.formats.exporters import Format
from ml.formats.label_versions import Edit, Labels
from ml.formats.layout import resolve_labels
from ml.formats.table_columns import ColumnNames
from tests import pictures

ODD_CLASSES = (
    "a/b", "日本", "=1+1", 'q"uo,te', "😀 x", "%2F", "a%2Fb", "..", ".hidden", "Cat", "cat", "train", "NA",
    "\u2028line", "x" * 200, "é" * 200, "C:", "__MACOSX", "a\\b", " blank ", "01",
)  # fmt: skip
ImageLabels = dict[str, tuple[str, str | None]]


def odd_files() -> dict[str, bytes]:
    """Images whose classes and paths are awkward, with a table."""
    files, rows = {}, []
    for number, name in enumerate(ODD_CLASSES):
        for split in ("train", "test"):
            path = f"pics/{number % 3}/{split}/é {number} [x]#?.{'png' if number % 2 else 'jpg'}"
            files[path] = pictures.encoded(2 * number + (split == "test"), kind="PNG" if number % 2 else "JPEG")
            rows.append(json.dumps({"path": path, "label": name, "split": split}))
        same = f"pics/{number}/same.jpg"  # one base name in every class
        files[same] = pictures.encoded(1000 + number)
        files[same.replace(".jpg", ".png")] = pictures.encoded(2000 + number, kind="PNG")
        rows += [json.dumps({"path": p, "label": name, "split": "train"}) for p in (same, same.replace("jpg", "png"))]
    return {**files, "labels.jsonl": "\n".join(rows).encode()}


def ready(folder: Path, archive: bytes, columns: ColumnNames = ColumnNames()) -> dict[str, object]:  # noqa: B008
    """Check and ingest an archive as API and worker do; returns the facts of the data set."""
    folder.mkdir(parents=True)
    (folder / "upload").write_bytes(archive)
    if not decompress(folder / "upload", folder / "archive"):
        (folder / "upload").rename(folder / "archive")
    layout = resolve_labels(read_archive(folder / "archive"), columns)
    return ingest.ingest(
        folder / "archive", layout.images, layout.classes, folder, report=layout.report, facts=layout.facts,
        image_size=8,
    )  # fmt: skip


def labels_of(folder: Path, version: int = 1) -> ImageLabels:
    """Split and label of each image that a version does not exclude, by the SHA-256 of its file."""
    classes = dataset_index.read_classes(folder, version)
    return {
        image.sha256: (image.split, classes[next(n for n in (image.given, image.clean) if n is not None)])
        for image in dataset_index.read_included(folder, version)
    }


def edit(folder: Path, *edits: Edit) -> None:
    """Make version 2 of the labels."""
    uploaded = dataset_index.uploaded_labels(folder)
    labels = Labels.of_upload(uploaded)
    assert labels.apply(edits, 2, uploaded) == []
    label_versions.write(folder, 2, labels, uploaded)


def correct(folder: Path) -> None:
    """Make a version 2: one image in three has another label, one in five is excluded, two classes are new."""
    classes = dataset_index.read_classes(folder)
    edits = [Edit("add_class", None, None, "new class"), Edit("rename_class", None, classes[-1], "=renamed")]
    names = [*classes[:-1], "=renamed"]
    for image in dataset_index.read_images(folder):
        label = None if image.given is None else names[image.given]
        if image.number % 5 == 1:
            edits.append(Edit("exclude", image.number, label, None))
        elif image.number % 3 == 0:
            new = names[0] if image.number % 2 and label != names[0] else "new class"
            edits.append(Edit("relabel", image.number, label, new))
        elif image.number % 3 == 1 and label is not None:
            edits.append(Edit("confirm", image.number, label, None))
    edit(folder, *edits)


def exported(folder: Path, format: Format, version: int = 1) -> bytes:
    return b"".join(Export(folder, read_version(folder, version), format).chunks())


def unpacked(archive: bytes) -> dict[str, bytes]:
    """The files of a zip or a tar, each name once."""
    if archive[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(archive)) as entries:
            assert entries.testzip() is None
            names = entries.namelist()
            files = {name: entries.read(name) for name in names}
    else:
        with tarfile.open(fileobj=io.BytesIO(archive)) as entries_:
            names = entries_.getnames()
            files = {name: entries_.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert len({name.casefold() for name in names}) == len(names)
    assert not any(part in ("", ".", "..") for name in names for part in name.split("/"))
    return files


def read_back(format: str, archive: bytes) -> ImageLabels:
    """Split and label of each image that an export holds, by the SHA-256 of its file; every image is labelled once."""
    files = unpacked(archive)
    images = {n: data for n, data in files.items() if n.lower().endswith((".jpg", ".png", ".webp", ".bmp", ".gif"))}
    rows = list(READERS[format](files, images))
    assert sorted(name for name, _, _ in rows) == sorted(images)
    return {hashlib.sha256(images[name]).hexdigest(): (split, label) for name, split, label in rows}


Rows = Iterator[tuple[str, str, str | None]]


def _imagefolder(files: Mapping[str, bytes], images: Mapping[str, bytes]) -> Rows:
    exact = {row[0]: row[2] for row in _csv(files, images)} if "labels.csv" in files else {}
    labels: dict[str, str | None] = {}
    for name in images:
        inner = name.removeprefix("a/b/")  # folders around everything
        first, _, below = inner.partition("/")
        split = {"train": "train", "test": "test", "val": "train"}.get(first)
        folder = (below if split else inner).partition("/")[0]
        label = exact.get(name, folder)
        yield name, split or "train", label
        assert labels.setdefault(folder.casefold(), label) == label  # no two classes share a folder


def _csv(files: Mapping[str, bytes], images: Mapping[str, bytes]) -> Rows:
    for row in csv.DictReader(io.StringIO(files["labels.csv"].decode(), newline="")):
        yield csv_cells.unescape(row["file"]), row["split"], csv_cells.unescape(row["label"]) or None


def _huggingface(files: Mapping[str, bytes], images: Mapping[str, bytes]) -> Rows:
    assert files["README.md"].startswith(b"---\n")
    for name, data in files.items():
        if name.endswith("metadata.jsonl"):
            folder = name.removesuffix("metadata.jsonl")
            for row in map(json.loads, data.decode().splitlines()):
                yield folder + row["file_name"], folder.strip("/") or "train", row["label"]


def _coco(files: Mapping[str, bytes], images: Mapping[str, bytes]) -> Rows:
    for split in ("train", "test"):
        if f"annotations/{split}.json" in files:
            document = json.loads(files[f"annotations/{split}.json"])
            names = {category["id"]: category["name"] for category in document["categories"]}
            labels = {item["image_id"]: names[item["category_id"]] for item in document["annotations"]}
            for image in document["images"]:
                yield image["file_name"], split, labels[image["id"]]


def _labelstudio(files: Mapping[str, bytes], images: Mapping[str, bytes]) -> Rows:
    choices = {choice.attrib["value"] for choice in ET.fromstring(files["config.xml"]).iter("Choice")}
    for task in json.loads(files["tasks.json"]):
        prefix, _, path = task["data"]["image"].partition("?d=")
        (result,) = task["annotations"][0]["result"]
        (label,) = result["value"]["choices"]
        assert prefix == "/data/local-files/"
        assert label in choices
        yield unquote(path), task["data"]["split"], label


def _fiftyone(files: Mapping[str, bytes], images: Mapping[str, bytes]) -> Rows:
    for split in ("train", "test"):
        if f"{split}/labels.json" in files:
            document = json.loads(files[f"{split}/labels.json"], object_pairs_hook=_unique)
            by_key = {n.removeprefix(f"{split}/data/").rpartition(".")[0]: n for n in images if n.startswith(split)}
            for key, number in document["labels"].items():
                yield by_key[key], split, document["classes"][number]


def _webdataset(files: Mapping[str, bytes], images: Mapping[str, bytes]) -> Rows:
    for name in images:
        key = name.partition(".")[0]
        facts = json.loads(files[f"{key}.json"])
        assert key.startswith(facts["split"])
        assert files[f"{key}.cls"].isdigit()
        yield name, facts["split"], facts["label"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


READERS: dict[str, Callable[[Mapping[str, bytes], Mapping[str, bytes]], Rows]] = {
    "imagefolder": _imagefolder,
    "csv": _csv,
    "huggingface": _huggingface,
    "coco": _coco,
    "labelstudio": _labelstudio,
    "fiftyone": _fiftyone,
    "webdataset": _webdataset,
}
