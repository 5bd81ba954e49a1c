"""`classes.txt`, the names of classes that a table gives by number: line 1 names class 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml.formats.archive import is_class_list
from ml.formats.container import Container
from ml.formats.entries import Entry
from ml.formats.errors import printable
from ml.formats.records import LabeledEntry, reject
from ml.formats.tables import check_label

MAX_CLASSES = 100_000
VotesByPath = Mapping[str, tuple[str | None, ...]]


def read_class_list(container: Container, files: dict[str, Entry], table: str) -> tuple[str, list[str]] | None:
    """The list of classes for a table: beside it, or in the nearest folder above.

    Args:
        container: The data set.
        files: Its files that are no images, by path.
        table: Path of the table.

    Returns:
        Path of the list and the names by number; None where there is no list.

    Raises:
        DatasetFormatError: bad_class_list for one that is not UTF-8, has an empty or repeated line, or more than
            `MAX_CLASSES` lines; archive_too_large.
    """
    lists = {path.rpartition("/")[0]: path for path in files if is_class_list(path)}
    folder = table.rpartition("/")[0]
    while folder and folder not in lists:
        folder = folder.rpartition("/")[0]
    if folder not in lists:
        return None
    path = lists[folder]
    try:
        text = container.content(files[path]).decode("utf-8-sig")
    except UnicodeDecodeError:
        reject("bad_class_list", f"{printable(path)} is not UTF-8", path)
    lines = text.rstrip().replace("\r\n", "\n").replace("\r", "\n").split("\n", MAX_CLASSES)
    names = [line.strip() for line in lines] if text.strip() else []
    if len(names) > MAX_CLASSES:
        reject("bad_class_list", f"{printable(path)} has more than {MAX_CLASSES} lines", path)
    for number, name in enumerate(names, 1):
        fault = check_label(name) if name else "the line is empty"
        if fault is not None:
            reject("bad_class_list", f"{printable(path)}, line {number}: {fault}", f"{printable(path)}, line {number}")
    if len(set(names)) < len(names):
        reject("bad_class_list", f"{printable(path)} names a class twice", path)
    return path, names


def are_numbers(entries: Sequence[LabeledEntry], votes: VotesByPath) -> bool:
    """Whether all labels and votes are whole numbers, so that a list of classes applies."""
    labels = _labels(entries, votes)
    return bool(labels) and all(label.isdecimal() and label.isascii() for label in labels)


def name_classes(
    entries: Sequence[LabeledEntry], votes: VotesByPath, names: Sequence[str], path: str
) -> tuple[list[LabeledEntry], dict[str, tuple[str | None, ...]]]:
    """The entries and votes with names instead of numbers.

    Args:
        entries: Images with the labels of their table, which are numbers.
        votes: Of annotators, by path; numbers likewise.
        names: Class names by number.
        path: Of the list, for messages.

    Raises:
        DatasetFormatError: unknown_class for a number that the list does not name.
    """
    labels = _labels(entries, votes)
    for label in sorted(labels):
        if len(label) > len(str(MAX_CLASSES)) or int(label) >= len(names):
            known = f"{printable(path)} names the classes 0 to {len(names) - 1}"
            reject("unknown_class", f"the label {printable(label, 60)} is no class: {known}", path)
    by_label: dict[str | None, str | None] = {label: names[int(label)] for label in labels}
    by_label[None] = None
    named = [item._replace(given=by_label[item.given], clean=by_label[item.clean]) for item in entries]
    return named, {image: tuple([by_label[vote] for vote in of_image]) for image, of_image in votes.items()}


def _labels(entries: Sequence[LabeledEntry], votes: VotesByPath) -> set[str]:
    labels = {label for item in entries for label in (item.given, item.clean)}
    return {label for label in labels.union(*votes.values()) if label is not None}
