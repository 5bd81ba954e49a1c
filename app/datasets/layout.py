"""What the files of an archive mean: which are images, their split, their labels (Z6-Z9, C1-C6).

Two layouts: class folders, and images with a table. Decided from names and tables alone; no image is opened here.
Ambiguity is refused with a sentence that says how to resolve it, never guessed away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from app.datasets import class_folders, label_tables
from app.datasets.archive import Archive, is_table
from app.datasets.entries import Entry
from app.datasets.label_tables import Columns
from app.datasets.rows import Finding, Row, reject
from app.datasets.tables import Table
from app.errors import shown

Split = Literal["train", "test"]
IMAGES = frozenset((
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif",
    "tif", "tiff", "svg", "psd", "heic", "avif", "jp2", "ico",  # meant as images: reported as unreadable, not ignored
))  # fmt: skip
JUNK = frozenset(("__macosx", "thumbs.db", "desktop.ini"))


class ImageRecord(NamedTuple):
    """An image file with its split and class ids; the fields that `ml.data.ingest` asks for."""

    path: str
    split: Split
    given: int | None
    clean: int | None
    offset: int
    stored_bytes: int
    deflated: bool
    image_bytes: int
    crc: int | None


@dataclass(frozen=True)
class Layout:
    """Everything ingest needs. `facts` are shown with the data set."""

    classes: tuple[str, ...]
    images: list[ImageRecord]
    findings: list[Finding]
    facts: dict[str, str | None]


def interpret(archive: Archive, *, label_column: str | None = None, clean_column: str | None = None) -> Layout:
    """Read the layout; raises ArchiveRejected (no_images, ambiguous_layout, too_few_classes, unknown_column ...)."""
    findings: list[Finding] = []
    images, others = _sorted_out(archive.entries, findings)
    asked = Columns(label_column, clean_column)
    chosen = label_tables.choose(archive, images, others, asked, findings)
    if chosen:
        rows = [row for table in chosen for row in table.rows(images, asked, findings)]
        rows = _merged(rows, chosen[0].table, findings)
        _require_agreement(rows, asked)
        _report_unlabelled(images, rows, findings)
    else:
        if label_column or clean_column:
            column = label_column or clean_column
            reject("unknown_column", f"there is no table with a path column, so no column {shown(column)!r}")
        if not images:
            reject("no_images", "the archive holds no images")
        rows = class_folders.rows_of(images, archive.folders, findings)
    facts = {
        "layout": "table" if chosen else "folders",
        "label_column": chosen[0].label if chosen else None,
        "clean_column": clean_column,
    }
    return _layout(rows, findings, facts)


def _sorted_out(entries: Sequence[Entry], findings: list[Finding]) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Images and other files by path; junk is reported and gone (Z7)."""
    images: dict[str, Entry] = {}
    others: dict[str, Entry] = {}
    junk: dict[str, bool] = {}  # by folder: there are few
    for entry in entries:
        path = entry[0]
        folder, _, leaf = path.rpartition("/")
        if folder not in junk:
            junk[folder] = folder.startswith(".") or "/." in folder or not JUNK.isdisjoint(folder.lower().split("/"))
        if junk[folder] or leaf[0] == "." or leaf.lower() in JUNK:
            findings.append(Finding(path, "junk_file", "left behind by an operating system", "ignored"))
        elif leaf.rpartition(".")[2].lower() in IMAGES:
            images[path] = entry
        else:
            others[path] = entry
    findings.extend(
        Finding(path, "ignored_file", "neither an image nor a table; not opened", "ignored")
        for path in others
        if not is_table(path)
    )
    return images, others


def _merged(rows: list[Row], table: Table, findings: list[Finding]) -> list[Row]:
    """One row an image: repeats are reported, contradictions refused (C2)."""
    kept: dict[str, Row] = {}
    for row in rows:
        path = row.entry.path
        if (other := kept.get(path)) is None:
            kept[path] = row
        elif other == row:
            findings.append(Finding(path, "repeated_row", "the table names the image more than once", "warning"))
        elif (other.given, other.clean) == (row.given, row.clean):
            reject("ambiguous_layout", f"{shown(path)!r} is in {other.split} and in {row.split}", path)
        else:
            labels = f"{shown(other.given, 60)!r} and {shown(row.given, 60)!r}"
            reject("conflicting_labels", f"{shown(path)!r} has two rows, with the labels {labels}", path)
    if not kept:
        reject("no_images", f"no row of {shown(table.path)} names an image of the archive", table.path)
    return list(kept.values())


def _require_agreement(rows: Sequence[Row], asked: Columns) -> None:
    """Class folders and a table together must say the same, unless the request names the column (Z8)."""
    if asked.label is not None:
        return
    labels = {row.given for row in rows} | {row.clean for row in rows}
    folders = [(row, [part for part in row.entry.path.split("/")[:-1] if part in labels]) for row in rows]
    if len({names[-1] for _, names in folders if names}) < 2:
        return  # images/, train/ ...: these folders are no classes
    for row, names in folders:
        if row.given not in names and row.clean not in names:
            path, label = row.entry.path, shown(row.given, 60)
            detail = f"{shown(path)!r} is labelled {label!r}, its folder differs; name label_column to trust the table"
            reject("ambiguous_layout", detail, path)


def _report_unlabelled(images: dict[str, Entry], rows: Sequence[Row], findings: list[Finding]) -> None:
    labelled = {row.entry.path for row in rows}
    findings.extend(
        Finding(path, "unlabelled_image", "no row of the table names it", "ignored")
        for path in images
        if path not in labelled
    )


def _layout(rows: list[Row], findings: list[Finding], facts: dict[str, str | None]) -> Layout:
    """Class ids from sorted names, and `val` settled: it is the test set only where no other exists."""
    if not any(row.split == "train" for row in rows):
        reject("no_images", "there are no training images: name a folder or table train")
    val: Split = "train" if any(row.split == "test" for row in rows) else "test"
    names = {row.given for row in rows} | {row.clean for row in rows}
    classes = tuple(sorted(name for name in names if name is not None))
    ids: dict[str | None, int | None] = {name: index for index, name in enumerate(classes)}
    ids[None] = None
    splits: dict[str, Split] = {"train": "train", "test": "test", "val": val}
    images = []
    for (path, offset, stored_bytes, deflated, image_bytes, crc), split, given, clean in rows:
        place = (offset, stored_bytes, deflated, image_bytes, crc)
        images.append(ImageRecord(path, splits[split], ids[given], ids[clean], *place))
    trained = {image.given for image in images if image.split == "train"}
    if len(trained) < 2:
        only = shown(classes[next(iter(trained)) or 0], 60)
        reject("too_few_classes", f"all training images belong to the class {only!r}; two classes are needed")
    return Layout(classes, images, findings, facts)
