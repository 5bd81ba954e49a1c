"""Class folders: `train/<class>/x.jpg`, as `ImageFolder` of torchvision and uploads of this service have them.

Where the upload had class folders, images stay in them under their paths, and those with a new label move to its
folder. Any other upload is laid out anew.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from ml.formats import export_tables
from ml.formats.class_folders import find_root
from ml.formats.export_archive import ExportFile
from ml.formats.export_names import UniqueNames, name_folders
from ml.formats.export_source import ExportImage, ExportSource
from ml.formats.records import SPLITS

ABOUT = "Class folders below train and test; read by this service, torchvision's ImageFolder, timm and Keras."
CONTAINER: Literal["zip", "tar"] = "zip"
TABLE = "labels.csv"


class ClassFolders(NamedTuple):
    """How the class folders of an upload lie.

    Args:
        root: The folders around the set, ending in `/`; empty for none.
        level: How many folders lie between the root and a class: 1 where there are folders of splits, else 0.
        val: The split that a folder `val` means.
    """

    root: str
    level: int
    val: str

    def is_labeled_so(self, image: ExportImage) -> bool:
        """Whether the path of an image says its split and the label that was uploaded."""
        parts = self.parts(image)
        split = SPLITS.get(parts[0].lower()) if self.level else "train"
        split = self.val if split == "val" else split
        return len(parts) > self.level + 1 and parts[self.level] == image.uploaded and split == image.record.split

    def parts(self, image: ExportImage) -> list[str]:
        """The path below the root, by its folders."""
        return image.record.path[len(self.root) :].split("/")


def files(source: ExportSource) -> Iterator[ExportFile]:
    """The images; and first a table with the exact labels where a class cannot name a folder."""
    folders = name_folders(source.classes, [TABLE])
    if any(folder != name for name, folder in folders.items()):
        named = functools.partial(_name_images, source, folders)
        yield ExportFile(TABLE, export_tables.csv_table(source, named))
    for path, image in _name_images(source, folders):
        yield ExportFile(path, image.record)


def _name_images(source: ExportSource, folders: Mapping[str, str]) -> Iterator[tuple[str, ExportImage]]:
    layout = _find_class_folders(source)
    if layout is None or (layout.level == 0 and any(folder.lower() in SPLITS for folder in folders.values())):
        names = UniqueNames()
        for image in source.images():
            folder = f"{image.record.split}/{folders[image.target or '']}"
            yield names.add(f"{folder}/{image.record.path.rpartition('/')[2]}", image.record.number), image
        return
    moved: UniqueNames | None = None
    for image in source.images():
        if image.label == image.uploaded and folders[image.label or ""] == image.label:
            yield image.record.path, image
            continue
        moved = moved or UniqueNames((image.record.path for image in source.images()), are_files=True)
        parts = layout.parts(image)
        parts[layout.level] = folders[image.target or ""]
        yield moved.add(layout.root + "/".join(parts), image.record.number), image


def _find_class_folders(source: ExportSource) -> ClassFolders | None:
    """How the class folders of the upload lie; None where not every image has its label by its folder."""
    root = find_root({image.record.path.rpartition("/")[0] for image in source.images()})
    firsts = {image.record.path[len(root) :].partition("/")[0].lower() for image in source.images()}
    splits = {SPLITS.get(first) for first in firsts}
    layout = ClassFolders(root, int(splits != {None}), "train" if "test" in splits else "test")
    return layout if all(map(layout.is_labeled_so, source.images())) else None
