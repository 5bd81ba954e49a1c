"""Versions of a data set's labels: the uploaded ones are version 1, every later version is one file that never changes.

The file of a version holds everything in which its labels differ from the uploaded ones. `ml.formats.dataset_index`
reads a data set through it. Images never change.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ml.formats import fsync
from ml.formats.errors import UnreadableFile, printable
from ml.formats.tables import check_label

FOLDER = "labels"  # in the folder of a data set
UNREADABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR}
UPLOADED = 1  # the version of the uploaded labels, which has no file

ImageAction = Literal["relabel", "confirm", "exclude"]
ClassAction = Literal["add_class", "rename_class", "merge_class"]
LabelStatus = Literal["unreviewed", "relabelled", "confirmed", "excluded"]
"""What the edits so far have made of an image."""

IMAGE_ACTIONS: tuple[str, ...] = get_args(ImageAction)
CLASS_ACTIONS: tuple[str, ...] = get_args(ClassAction)
STATUSES: tuple[str, ...] = get_args(LabelStatus)
STATUS_OF: dict[str, LabelStatus] = {"relabel": "relabelled", "confirm": "confirmed", "exclude": "excluded"}

SCHEMA = """
CREATE TABLE class ("index" INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE uploaded_class ("index" INTEGER PRIMARY KEY, now INTEGER NOT NULL);
CREATE TABLE label (image INTEGER PRIMARY KEY, given INTEGER, status TEXT NOT NULL, version INTEGER NOT NULL);
"""


class Edit(NamedTuple):
    """One change of labels.

    Args:
        action: Of an image: relabel, confirm or exclude. Of a class: add_class, rename_class or merge_class.
        image: Number of the image; None for a class.
        old: Name of the image's label, or of the class, before: what the client has seen. None where an image of the
            test split has no label, and for a class that is added.
        new: Name of the label or class afterwards; None for confirm and exclude.
    """

    action: str
    image: int | None
    old: str | None
    new: str | None


class EditFault(NamedTuple):
    """Why an edit cannot be applied. `code` is label_moved_on where the label is no longer what the client has seen."""

    position: int  # of the edit, from 0
    code: str
    detail: str


MOVED_ON = "label_moved_on"


class ImageLabel(NamedTuple):
    """The label of one image that edits have touched."""

    label: str | None
    status: LabelStatus
    version: int  # the last one that touched it


class UploadedLabels(NamedTuple):
    """What was uploaded: names of classes by class id, and the class id of every image, None where it has none."""

    classes: Sequence[str]
    given: Mapping[int, int | None]


@dataclass
class Labels:
    """The labels of one version, as far as they differ from the uploaded ones.

    Attributes:
        classes: Names of the classes; sorted, so that the position is the class id.
        renamed: What became of each uploaded class, by its uploaded name.
        images: The images that edits have touched, by number.
    """

    classes: list[str]
    renamed: dict[str, str]
    images: dict[int, ImageLabel] = field(default_factory=dict)

    @classmethod
    def of_upload(cls, uploaded: UploadedLabels) -> Labels:
        """Version 1."""
        return cls(list(uploaded.classes), {name: name for name in uploaded.classes})

    def label_of(self, image: int, uploaded: UploadedLabels) -> str | None:
        """The name of an image's label; KeyError where there is no such image."""
        class_id = uploaded.given[image]
        if image in self.images:
            return self.images[image].label
        return None if class_id is None else self.renamed[uploaded.classes[class_id]]

    def status_of(self, image: int) -> LabelStatus:
        """What edits have made of an image's label."""
        return self.images[image].status if image in self.images else "unreviewed"

    def apply(self, edits: Sequence[Edit], version: int, uploaded: UploadedLabels) -> list[EditFault]:
        """Apply all edits in their order: those of classes rename what later edits refer to.

        Args:
            edits: An image may appear once.
            version: The number of the version that they make.
            uploaded: The uploaded labels.

        Returns:
            What is wrong; the labels are of no use unless it is empty.
        """
        faults: list[EditFault] = []
        before = {name: _Class(name) for name in self.classes}
        classes = dict(before)
        edited: dict[int | None, tuple[_Class | None, LabelStatus]] = {}
        for position, edit in enumerate(edits):
            if edit.action in CLASS_ACTIONS:
                fault = _edit_class(edit, classes)
            elif edit.image in edited:
                fault = "repeated_image", f"Image {edit.image} is edited twice."
            elif edit.image is None or edit.image not in uploaded.given:
                fault = "unknown_image", f"The data set has no image {edit.image}."
            else:
                label = self.label_of(edit.image, uploaded)
                of_image = None if label is None else before[label].current()
                fault = check_image_edit(edit, None if of_image is None else of_image.name, classes)
                if edit.action == "relabel" and edit.new is not None:
                    of_image = classes.get(edit.new)
                edited[edit.image] = of_image, STATUS_OF[edit.action]
            if fault is not None:
                faults.append(EditFault(position, *fault))

        # Names of classes as the last edit has left them, written once however many edits renamed them.
        names: dict[str | None, str | None] = {name: of_class.current().name for name, of_class in before.items()}
        names[None] = None
        self.classes = sorted(classes)
        self.renamed = {name: before[now].current().name for name, now in self.renamed.items()}
        for image, of in self.images.items():
            self.images[image] = of._replace(label=names[of.label])
        for number, (of_image, status) in edited.items():
            assert number is not None, "refused above"
            self.images[number] = ImageLabel(None if of_image is None else of_image.current().name, status, version)
        return faults


@dataclass(eq=False)
class _Class:
    """A class while edits are applied: its name now, and the class that it was merged into."""

    name: str
    into: _Class | None = None

    def current(self) -> _Class:
        """The class that its images have now; all on the way point at it from now on, so that no way is gone twice."""
        last = self
        while last.into is not None:
            last = last.into
        passed = self
        while passed.into is not None:
            passed.into, passed = last, passed.into
        return last


def check_image_edit(edit: Edit, label: str | None, classes: Container[str]) -> tuple[str, str] | None:
    """Code and detail of what is wrong with an edit of an image that has this label; None if nothing is."""
    if edit.old != label:
        return MOVED_ON, f"The label of image {edit.image} is {_quoted(label)}, not {_quoted(edit.old)}."
    if edit.action == "relabel":
        if edit.new is None or edit.new not in classes:
            return "unknown_class", f"There is no class {_quoted(edit.new)}; an edit with add_class makes one."
        if edit.new == label:
            return "same_label", f"Image {edit.image} is labelled {_quoted(label)} already; confirm it instead."
    elif edit.new not in (None, label):
        return "not_accepted", f"{edit.action} keeps the label: leave `to` out."
    elif edit.action == "confirm" and label is None:
        return "no_label", f"Image {edit.image} has no label to confirm."
    return None


def _edit_class(edit: Edit, classes: dict[str, _Class]) -> tuple[str, str] | None:
    """Change the classes, by name; code and detail of what is wrong, None if nothing is."""
    old, new = edit.old, edit.new
    if edit.action != "add_class" and old not in classes:
        return "unknown_class", f"There is no class {_quoted(old)}."
    if edit.action == "merge_class":
        if new not in classes or new == old:
            return "unknown_class", f"There is no other class {_quoted(new)} to merge {_quoted(old)} into."
    elif new is None or new in classes:
        return "class_exists", f"There is a class {_quoted(new)} already; merge_class joins two."
    else:
        fault = check_label(new) if new.strip() else "the name is empty"
        if fault is not None:
            return "class_name", f"{fault[0].upper()}{fault[1:]}."
    assert new is not None, "refused above"
    if edit.action == "add_class":
        classes[new] = _Class(new)
        return None
    assert old is not None, "refused above"
    of_old = classes.pop(old)
    if edit.action == "merge_class":
        of_old.into = classes[new]
    else:
        of_old.name, classes[new] = new, of_old
    return None


def path_of(folder: Path, version: int) -> Path:
    """The file of a version of the data set in `folder`."""
    return folder / FOLDER / f"{version}.sqlite"


def read_only(path: Path) -> str:
    """The URI by which SQLite opens a file that never changes."""
    return f"{path.absolute().as_uri()}?mode=ro&immutable=1"


@contextlib.contextmanager
def checked_reads() -> Iterator[None]:
    """Raise UnreadableFile where SQLite finds a file missing or damaged: when it is opened, attached or read."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        is_empty = str(error).startswith("no such table")  # a file without content is a database without tables
        if not is_empty and getattr(error, "sqlite_errorcode", 0) & 0xFF not in UNREADABLE:
            raise
        raise UnreadableFile(str(error)) from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """An SQLite file that never changes; UnreadableFile where it, or one that is attached, is missing or damaged."""
    with checked_reads(), contextlib.closing(sqlite3.connect(read_only(path), uri=True)) as database:
        yield database


def read(folder: Path, version: int, uploaded: UploadedLabels) -> Labels:
    """The labels of a version.

    Args:
        folder: The data set.
        version: Of its labels.
        uploaded: The uploaded labels.
    """
    if version == UPLOADED:
        return Labels.of_upload(uploaded)
    with opened(path_of(folder, version)) as file:
        classes = [name for (name,) in file.execute('SELECT name FROM class ORDER BY "index"')]
        renamed = {
            uploaded.classes[old]: classes[now] for old, now in file.execute('SELECT "index", now FROM uploaded_class')
        }
        images = {
            image: ImageLabel(None if given is None else classes[given], status, of_version)
            for image, given, status, of_version in file.execute("SELECT image, given, status, version FROM label")
        }
    return Labels(classes, renamed, images)


def write(folder: Path, version: int, labels: Labels, uploaded: UploadedLabels) -> None:
    """Write the file of a new version; it is there completely or not at all, and survives a power cut.

    What a crash has left behind, half a file or one that was never recorded as a version, is replaced.

    Args:
        folder: The data set.
        version: The number of the new version; nobody else may write one of this data set at the same time.
        labels: Its labels.
        uploaded: The uploaded labels.
    """
    target = path_of(folder, version)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    for half in target.parent.glob(".*.tmp"):
        half.unlink()
    temporary = target.with_name(f".{version}.{uuid.uuid4().hex}.tmp")
    ids = {name: number for number, name in enumerate(labels.classes)}
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as file:
            file.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + SCHEMA)
            file.execute("BEGIN")
            file.executemany("INSERT INTO class VALUES (?,?)", enumerate(labels.classes))
            file.executemany(
                "INSERT INTO uploaded_class VALUES (?,?)",
                ((number, ids[labels.renamed[name]]) for number, name in enumerate(uploaded.classes)),
            )
            file.executemany(
                "INSERT INTO label VALUES (?,?,?,?)",
                (
                    (image, None if label.label is None else ids[label.label], label.status, label.version)
                    for image, label in sorted(labels.images.items())
                ),
            )
            file.execute("COMMIT")
        temporary.chmod(0o600)
        fsync.flush(temporary)
        temporary.replace(target)
        fsync.flush(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def digest(labels: Labels, uploaded: UploadedLabels) -> str:
    """SHA-256 (hex) of the classes and of every image's label and status; equal for equal labels."""
    hashed = hashlib.sha256(repr(labels.classes).encode())
    for image in sorted(uploaded.given):
        hashed.update(repr((image, labels.label_of(image, uploaded), labels.status_of(image))).encode())
    return hashed.hexdigest()


def _quoted(name: str | None) -> str:
    return "none" if name is None else repr(printable(name))
