"""Hugging Face's `imagefolder`: `metadata.jsonl` beside the images, and a README that declares splits and classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from ml.formats.entry_names import MAX_LEVELS
from ml.formats.export_archive import ExportFile
from ml.formats.export_names import beside, split_ending
from ml.formats.export_source import ExportImage, ExportSource
from ml.formats.export_tables import json_lines, label_facts
from ml.formats.records import SPLITS, Split
from ml.formats.table_columns import UPLOADED_COLUMN

ABOUT = "metadata.jsonl beside the images of each split; read by datasets.load_dataset(folder) and by this service."
CONTAINER: Literal["zip", "tar"] = "zip"
CARD, TABLE = "README.md", "metadata.jsonl"

Layout = Literal["one folder", "split folders of the upload", "split folders around the upload"]


def files(source: ExportSource) -> Iterator[ExportFile]:
    """The card, a table for each split, then the images."""
    layout = _choose_layout(source)
    folders = {split: "" if layout == "one folder" else f"{split}/" for split in source.splits}
    yield ExportFile(CARD, _card(source, folders).encode())
    for split, folder in folders.items():
        images = functools.partial(source.of_split, split)
        yield ExportFile(folder + TABLE, _table(source, folder, images, layout))
    for image in source.images():
        yield ExportFile(_path(image, layout), image.record)


def _choose_layout(source: ExportSource) -> Layout:
    """The one that keeps the paths of the upload, where there is one."""
    if all(image.record.path.startswith(f"{image.record.split}/") for image in source.images()):
        return "split folders of the upload"
    parts = (part for image in source.images() for part in image.record.path.lower().split("/")[:-1])
    is_one = source.splits == ("train",) and not any(part in SPLITS for part in parts)
    return "one folder" if is_one else "split folders around the upload"


def _path(image: ExportImage, layout: Layout) -> str:
    """The path of an image in the archive. Where a folder more would be too deep, the hash names the image."""
    record = image.record
    if layout == "one folder":
        return beside([CARD, TABLE], record.path, record)
    path = record.path
    if layout == "split folders of the upload":
        path = path.partition("/")[2]
    elif path.count("/") + 2 > MAX_LEVELS:
        path = f"{record.number}-{record.sha256}{split_ending(path)[1]}"
    return f"{record.split}/{beside([TABLE], path, record)}"


def _table(
    source: ExportSource, folder: str, images: Callable[[], Iterator[ExportImage]], layout: Layout
) -> Callable[[], Iterator[bytes]]:
    def rows() -> Iterator[dict[str, str | None]]:
        for image in images():
            row = {"file_name": _path(image, layout).removeprefix(folder), "label": image.target}
            yield row | label_facts(source, image)

    return json_lines(rows)


def _card(source: ExportSource, folders: Mapping[Split, str]) -> str:
    """Which files make which split, and the columns, as `datasets` reads them from the head of a README."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, folder in folders.items():
        lines += [f"  - split: {split}", f'    path: "{folder}**"']
    lines += ["  features:", "  - name: image", "    dtype: image", "  - name: label"]
    lines += ["    dtype:", "      class_label:", "        names:"]
    lines += [f"          '{number}': {_yaml_text(name)}" for number, name in enumerate(source.classes)]
    for column in (*(["clean_label"] if source.has_clean else []), UPLOADED_COLUMN, "action"):
        lines += [f"  - name: {column}", "    dtype: string"]
    lines += ["task_categories:", "- image-classification", "---", ""]
    lines += [f"Labels of version {source.version}, data set {source.digest}.", ""]
    return "\n".join(lines)


def _yaml_text(text: str) -> str:
    escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return f'"{"".join(escaped)}"'
