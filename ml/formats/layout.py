"""Which files of a container are images, and their splits and labels (Z6-Z9, C1-C6).

There are two layouts: class folders, and images with a table. Names and tables alone decide; no image is opened.
What can be understood in two ways is refused with a sentence that says how to resolve it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from ml.formats.annotation_files import sample_name
from ml.formats.archive import is_table
from ml.formats.class_folders import label_by_folder
from ml.formats.class_list import are_numbers, name_classes, read_class_list
from ml.formats.container import Container
from ml.formats.entries import Entry
from ml.formats.errors import DatasetFormatError, name_list, printable
from ml.formats.label_tables import LabelTable, choose_tables, is_exported
from ml.formats.records import ImageRecord, LabeledEntry, ReportLine, Split, reject
from ml.formats.table_columns import ColumnNames
from ml.formats.votes import CONSENSUS, Votes

IMAGE_SUFFIXES = frozenset((
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif",
    "tif", "tiff", "svg", "psd", "heic", "avif", "jp2", "ico",  # meant as images: reported as unreadable, not ignored
))  # fmt: skip
JUNK = frozenset(("__macosx", "thumbs.db", "desktop.ini"))


@dataclass(frozen=True)
class Layout:
    """The images of a container with their labels.

    Args:
        classes: Names by class id, sorted: all given and clean labels that occur.
        images: In no particular order.
        report: What was left out, ignored or looks wrong.
        facts: How the labels were read: `layout` (table or folders), `path_column`, `label_column` (`consensus` for the
            majority of annotators), `clean_column` and `class_list`, each None where there is none.
        votes: What annotators say of the images; None without columns of annotators.
    """

    classes: tuple[str, ...]
    images: list[ImageRecord]
    report: list[ReportLine]
    facts: dict[str, str | None]
    votes: Votes | None = None


NO_COLUMNS = ColumnNames()


def resolve_labels(container: Container, columns: ColumnNames = NO_COLUMNS) -> Layout:
    """Find the images of a container, and the split and the labels of each.

    Args:
        container: An archive or a folder.
        columns: The columns of its table that the user named.

    Raises:
        DatasetFormatError: no_images, ambiguous_layout, too_few_classes, conflicting_labels, unknown_class,
            bad_class_list, and what `label_tables.choose_tables` and `LabelTable.read` raise.
    """
    report: list[ReportLine] = []
    images, files = _sort_files(container.entries, report)
    tables = choose_tables(container, images, files, columns, report)
    class_list: str | None = None
    votes: dict[str, tuple[str | None, ...]] = {}
    if tables:
        labeled = [entry for table in tables for entry in table.read(images, report, votes)]
        if not labeled:
            _reject_unnamed_images(tables[0], images)
        labeled = _merge(labeled, report)
        labeled, votes, class_list = _apply_class_list(container, files, tables[0].table.path, labeled, votes)
        if columns.label is None and not columns.annotators and not is_exported(tables[0].table):
            _check_folders_agree(labeled)
            _check_no_class_folders(tables[0], labeled, images)
            _check_one_class(tables[0], labeled, images)
        _report_unlabeled(images, labeled, report)
    else:
        if named := next(filter(None, (columns.label, columns.clean, columns.path, *columns.annotators)), None):
            reject("unknown_column", f"there is no table with a path column, so no column {printable(named)!r}")
        if not images:
            reject("no_images", "the archive holds no images")
        labeled = label_by_folder(images, container.folders, report)
    used = {table.table.path for table in tables} | {class_list or ""}
    report.extend(
        ReportLine(path, "ignored_file", "neither an image nor a table; not used", "ignored")
        for path in files
        if not is_table(path) and used.isdisjoint((path, sample_name(path) or path))
    )
    first = tables[0] if tables else None
    facts = {
        "layout": "table" if first else "folders",
        "path_column": first.table.columns[first.path] if first else None,
        "label_column": _label_column(first),
        "clean_column": first.table.columns[first.clean] if first and first.clean is not None else columns.clean,
        "class_list": class_list,
    }
    layout = _number_classes(labeled, report, facts)
    return replace(layout, votes=Votes(columns.annotators, votes)) if columns.annotators else layout


def _label_column(table: LabelTable | None) -> str | None:
    """The name of the column that is learned from."""
    if table is None or table.by_consensus:
        return None if table is None else CONSENSUS
    return None if table.label is None else table.table.columns[table.label]


def _sort_files(entries: Sequence[Entry], report: list[ReportLine]) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Images and other files by path; what an operating system left is reported and dropped (Z7)."""
    images: dict[str, Entry] = {}
    files: dict[str, Entry] = {}
    junk: dict[str, bool] = {}  # by folder: there are few
    for entry in entries:
        path = entry[0]
        folder, _, leaf = path.rpartition("/")
        if folder not in junk:
            junk[folder] = folder.startswith(".") or "/." in folder or not JUNK.isdisjoint(folder.lower().split("/"))
        if junk[folder] or leaf[0] == "." or leaf.lower() in JUNK:
            report.append(ReportLine(path, "junk_file", "left behind by an operating system", "ignored"))
        elif leaf.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
            images[path] = entry
        else:
            files[path] = entry
    return images, files


def _reject_unnamed_images(table: LabelTable, images: Mapping[str, Entry]) -> NoReturn:
    """Refuse a table of which no row names an image."""
    name = printable(table.table.path)
    detail = f"no row of {name} names an image of the archive"
    if (pair := table.find_other_case(images)) is not None:
        written, image = map(printable, pair)
        detail += f": it has {written!r} where the archive has {image!r}; capital and small letters must agree"
    reject("no_images", detail, table.table.path)


def _merge(labeled: Sequence[LabeledEntry], report: list[ReportLine]) -> list[LabeledEntry]:
    """Each image once: repeats are reported, contradictions refused (C2)."""
    by_path: dict[str, LabeledEntry] = {}
    for item in labeled:
        path = item.entry.path
        if (other := by_path.get(path)) is None:
            by_path[path] = item
        elif other == item:
            report.append(ReportLine(path, "repeated_row", "the table names the image more than once", "warning"))
        elif (other.given, other.clean) == (item.given, item.clean):
            reject("ambiguous_layout", f"{printable(path)!r} is in {other.split} and in {item.split}", path)
        else:
            labels = f"{printable(other.given, 60)!r} and {printable(item.given, 60)!r}"
            reject("conflicting_labels", f"{printable(path)!r} has two rows, with the labels {labels}", path)
    return list(by_path.values())


def _apply_class_list(
    container: Container,
    files: dict[str, Entry],
    table: str,
    labeled: list[LabeledEntry],
    votes: dict[str, tuple[str | None, ...]],
) -> tuple[list[LabeledEntry], dict[str, tuple[str | None, ...]], str | None]:
    """The images and their votes with the names of classes, and the path of the list if one was used."""
    class_list = read_class_list(container, files, table) if are_numbers(labeled, votes) else None
    if class_list is None:
        return labeled, votes, None
    path, names = class_list
    return *name_classes(labeled, votes, names, path), path


def _check_folders_agree(labeled: Sequence[LabeledEntry]) -> None:
    """Class folders and a table together must label alike, unless the user named the column (Z8)."""
    labels = {item.given for item in labeled} | {item.clean for item in labeled}
    folders = [(item, [part for part in item.entry.path.split("/")[:-1] if part in labels]) for item in labeled]
    if len({names[-1] for _, names in folders if names}) < 2:
        return  # images/, train/ ...: these folders are no classes
    for item, names in folders:
        if item.given not in names and item.clean not in names:
            path, label = item.entry.path, printable(item.given, 60)
            detail = (
                f"{printable(path)!r} is labelled {label!r}, its folder differs; name label_column to use the table"
            )
            reject("ambiguous_layout", detail, path)


def _check_no_class_folders(table: LabelTable, labeled: Sequence[LabeledEntry], images: dict[str, Entry]) -> None:
    """Beside class folders that label otherwise, a column is learned from only where a name says that it has labels."""
    if table.label is None or table.is_named_label():
        return
    try:
        by_folder = {item.entry.path: item.given for item in label_by_folder(images, (), [])}
    except DatasetFormatError:
        return  # the folders are no classes
    if len(set(by_folder.values())) > 1 and any(by_folder.get(item.entry.path) != item.given for item in labeled):
        path, column = printable(table.table.path), printable(table.table.columns[table.label], 60)
        detail = (
            f"the images lie in class folders, and {path} has the column {column!r};"
            " name label_column to use the table, or leave the table out to use the folders"
        )
        table.table.reject_columns("ambiguous_layout", detail)


def _check_one_class(table: LabelTable, labeled: Sequence[LabeledEntry], images: dict[str, Entry]) -> None:
    """A table of one class contradicts folders of several, unless the user named the column (Z8)."""
    training = [item for item in labeled if item.split == "train"]
    if len({item.given for item in training}) != 1:
        return
    try:
        by_folder = {item.entry.path: item.given for item in label_by_folder(images, (), [])}
    except DatasetFormatError:
        return  # the folders are no classes
    folders = {by_folder.get(item.entry.path) for item in training} - {None}
    other = next((item for item in training if by_folder.get(item.entry.path) not in (None, item.given)), None)
    if len(folders) > 1 and other is not None:
        path, label = printable(other.entry.path), printable(other.given, 60)
        detail = (
            f"folders and table contradict each other: {printable(table.table.path)} labels all training images"
            f" {label!r}, also {path!r}; correct the table, or leave it out to use the folders"
        )
        reject("ambiguous_layout", detail, other.entry.path)


def _report_unlabeled(images: Mapping[str, Entry], labeled: Sequence[LabeledEntry], report: list[ReportLine]) -> None:
    known = {item.entry.path for item in labeled} | {line.path for line in report if line.code == "unlabelled_row"}
    report.extend(
        ReportLine(path, "unlabelled_image", "no row of the table names it", "ignored")
        for path in images
        if path not in known
    )


def _number_classes(labeled: list[LabeledEntry], report: list[ReportLine], facts: dict[str, str | None]) -> Layout:
    """Class ids from sorted names; and `val` becomes the test split where there is no other, else part of train."""
    if not any(item.split == "train" for item in labeled):
        reject("no_images", "there are no training images: name a folder or table train")
    val: Split = "train" if any(item.split == "test" for item in labeled) else "test"
    splits: dict[str, Split] = {"train": "train", "test": "test", "val": val}
    labels = {item.given for item in labeled} | {item.clean for item in labeled}
    classes = tuple(sorted(label for label in labels if label is not None))
    ids: dict[str | None, int | None] = {name: index for index, name in enumerate(classes)}
    ids[None] = None
    images = []
    for (path, offset, stored_bytes, deflated, image_bytes, crc), split, given, clean in labeled:
        if given is None and splits[split] == "train":
            report.append(ReportLine(path, "unlabelled_row", "the image has no label to learn from", "excluded"))
            continue
        place = (offset, stored_bytes, deflated, image_bytes, crc)
        images.append(ImageRecord(path, splits[split], ids[given], ids[clean], *place))
    trained = {image.given for image in images if image.split == "train"}
    if len(trained) < 2:
        only = name_list(classes[given] for given in trained if given is not None)
        reject("too_few_classes", f"all training images belong to the class {only!r}; two classes are needed")
    return Layout(classes, images, report, facts)
