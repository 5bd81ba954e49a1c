"""The files of a ready data set, and its index: an SQLite file that ingest writes once and nobody changes.

A ready data set is a folder with the decompressed archive, the index, and one file of pixels for each image size. The
index holds the images, the classes, the report and the facts. Every read opens it anew and read-only, through a version
of the labels (`ml.formats.label_versions`): by default the uploaded ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ml.formats import archive, label_versions, votes
from ml.formats.records import NO_LABEL, ImageRecord, LabelColumns, Level, ReportLine, Split
from ml.formats.votes import ImageVotes

ARCHIVE_FILE = "archive"  # a zip or a plain tar
INDEX_FILE = "index.sqlite"
ROWS_READ = 4096  # of the index at a time

SCHEMA = """
CREATE TABLE image ("index" INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, split TEXT NOT NULL, given INTEGER,
  clean INTEGER, width INTEGER NOT NULL, height INTEGER NOT NULL, offset INTEGER NOT NULL,
  stored_bytes INTEGER NOT NULL, deflated INTEGER NOT NULL, image_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
  format TEXT NOT NULL);
CREATE TABLE class ("index" INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE report (path TEXT NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL, level TEXT NOT NULL);
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
# Images and classes as a version of the labels has them.
UPLOADED_VIEWS = """
CREATE TEMP VIEW labelled_class AS SELECT "index", name FROM main.class;
CREATE TEMP VIEW labelled AS SELECT *, NULL AS crc, 'unreviewed' AS status FROM main.image;
"""
VERSION_VIEWS = """
CREATE TEMP VIEW labelled_class AS SELECT "index", name FROM version.class;
CREATE TEMP VIEW labelled AS
  SELECT i."index", path, split, CASE WHEN l.image IS NULL THEN g.now ELSE l.given END AS given, c.now AS clean,
    width, height, offset, stored_bytes, deflated, image_bytes, NULL AS crc, sha256, format,
    COALESCE(l.status, 'unreviewed') AS status
  FROM main.image i LEFT JOIN version.label l ON l.image = i."index"
    LEFT JOIN version.uploaded_class g ON g."index" = i.given
    LEFT JOIN version.uploaded_class c ON c."index" = i.clean;
"""
IMAGE_COLUMNS = tuple('"index"' if field == "number" else field for field in ImageRecord._fields)
SELECT_IMAGES = f"SELECT {', '.join(IMAGE_COLUMNS)} FROM labelled"  # noqa: S608  # names of our own


SELECT_REPORT = (
    "SELECT path, code, detail, level, rowid FROM report"
    " WHERE rowid > ? AND level = COALESCE(?, level) AND code = COALESCE(?, code) ORDER BY rowid LIMIT ?"
)


class ClassCount(NamedTuple):
    """How many images a class has in each split, by given label (test images without one: by clean label)."""

    class_id: int
    name: str
    train: int
    test: int


class LabelChange(NamedTuple):
    """An image whose label or status differs between two versions of the labels."""

    number: int
    path: str
    label_before: str | None
    label_after: str | None
    status_before: str
    status_after: str


def pixels_path(folder: Path, size: int, resize: str) -> Path:
    """The file of pixels of one image size.

    Args:
        folder: The data set.
        size: Pixels of a side.
        resize: How images are made square; see `ml.data.decoding.Resize`.
    """
    return folder / f"pixels-{size}-{resize}.npy"


def is_ready(folder: Path) -> bool:
    """Whether a folder is a ready data set."""
    return (folder / INDEX_FILE).is_file()


def write_index(
    folder: Path,
    images: Iterable[ImageRecord],
    classes: Sequence[str],
    report: Iterable[ReportLine],
    facts: Mapping[str, object],
    annotators: Sequence[str] = (),
    image_votes: Mapping[int, ImageVotes] = MappingProxyType({}),
) -> None:
    """Write the index of a data set and flush it to disk.

    Args:
        folder: The data set; it must have no index yet.
        images: Decoded images, by ascending `number` from 0.
        classes: Names by class id.
        report: Lines in the order in which they are shown.
        facts: Anything that JSON can hold, by name.
        annotators: Names of those who voted.
        image_votes: Their votes by number of the image.
    """
    target = folder / INDEX_FILE
    database = sqlite3.connect(target, isolation_level=None)
    try:
        database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + SCHEMA + votes.SCHEMA)
        database.execute("BEGIN")
        database.executemany(
            'INSERT INTO image (path, split, given, clean, offset, stored_bytes, deflated, image_bytes, "index", width,'
            " height, sha256, format) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (image[:8] + image[9:14] for image in images),  # all but the CRC
        )
        database.executemany("INSERT INTO class VALUES (?,?)", enumerate(classes))
        database.executemany("INSERT INTO report VALUES (?,?,?,?)", (line[:4] for line in report))
        database.executemany("INSERT INTO fact VALUES (?,?)", ((k, json.dumps(v)) for k, v in facts.items()))
        votes.write(database, annotators, image_votes)
        database.execute("COMMIT")
    finally:
        database.close()
    target.chmod(0o600)
    with target.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def open_index(folder: Path, version: int = label_versions.UPLOADED) -> Iterator[sqlite3.Connection]:
    """The index of a data set, read-only; its views `labelled` and `labelled_class` have a version of the labels.

    Raises:
        UnreadableFile: The index, or the file of the version, is missing or damaged.
    """
    with label_versions.opened(folder / INDEX_FILE) as index:
        if version != label_versions.UPLOADED:
            index.execute("ATTACH ? AS version", (label_versions.read_only(label_versions.path_of(folder, version)),))
        index.executescript(UPLOADED_VIEWS if version == label_versions.UPLOADED else VERSION_VIEWS)
        yield index


def read_facts(folder: Path) -> dict[str, Any]:
    """What ingest learned of the whole: `digest`, `image_size`, `resize`, counts of images and of report lines."""
    with open_index(folder) as index:
        return {key: json.loads(value) for key, value in index.execute("SELECT key, value FROM fact")}


def read_classes(folder: Path, version: int = label_versions.UPLOADED) -> list[str]:
    """Names by class id."""
    with open_index(folder, version) as index:
        return [name for (name,) in index.execute('SELECT name FROM labelled_class ORDER BY "index"')]


def read_labels(folder: Path, numbers: Sequence[int], version: int = label_versions.UPLOADED) -> dict[int, str | None]:
    """The names of the labels of some images by number; those that do not exist are left out."""
    query = (
        'SELECT l."index", c.name FROM json_each(?) AS number JOIN labelled l ON l."index" = number.value'
        ' LEFT JOIN labelled_class c ON c."index" = l.given'
    )
    with open_index(folder, version) as index:
        return dict(index.execute(query, (json.dumps(list(numbers)),)))


def read_label(folder: Path, number: int, version: int = label_versions.UPLOADED) -> tuple[str | None, str]:
    """The name of the label of an image that exists, None where it has none; and its status."""
    query = (
        'SELECT c.name, l.status FROM labelled l LEFT JOIN labelled_class c ON c."index" = l.given WHERE l."index" = ?'
    )
    with open_index(folder, version) as index:
        label, status = index.execute(query, (number,)).fetchone()
        return label, status


def uploaded_labels(folder: Path) -> label_versions.UploadedLabels:
    """What versions of the labels start from."""
    with open_index(folder) as index:
        given = dict(index.execute('SELECT "index", given FROM image'))
    return label_versions.UploadedLabels(read_classes(folder), given)


def compare_labels(folder: Path, before: int, after: int, *, start: int = -1, limit: int = -1) -> list[LabelChange]:
    """Images whose label or status differs between two versions of the labels, in the order of their numbers.

    Args:
        folder: The data set.
        before: The one version.
        after: The other version.
        start: Only images with a higher number.
        limit: At most so many; -1 for all.
    """
    labels, statuses, joins = [], [], []
    with open_index(folder) as index:
        for name, version in (("one", before), ("two", after)):
            if version == label_versions.UPLOADED:
                joins.append(f'LEFT JOIN main.class {name}_class ON {name}_class."index" = i.given')
                statuses.append("'unreviewed'")
            else:
                path = label_versions.read_only(label_versions.path_of(folder, version))
                index.execute(f"ATTACH ? AS {name}", (path,))
                joins.append(
                    f'LEFT JOIN {name}.label {name}_label ON {name}_label.image = i."index"'
                    f' LEFT JOIN {name}.uploaded_class {name}_now ON {name}_now."index" = i.given'
                    f' LEFT JOIN {name}.class {name}_class ON {name}_class."index" ='
                    f" CASE WHEN {name}_label.image IS NULL THEN {name}_now.now ELSE {name}_label.given END"
                )
                statuses.append(f"COALESCE({name}_label.status, 'unreviewed')")
            labels.append(f"{name}_class.name")
        # Parts of the query are this function's own words.
        query = (
            f'SELECT i."index", i.path, {", ".join(labels)}, {", ".join(statuses)} FROM main.image i {" ".join(joins)}'  # noqa: S608
            f' WHERE i."index" > ? AND ({" IS NOT ".join(labels)} OR {" IS NOT ".join(statuses)})'
            ' ORDER BY i."index" LIMIT ?'
        )
        return [LabelChange(*row) for row in index.execute(query, (start, limit))]


def count_classes(folder: Path, version: int = label_versions.UPLOADED) -> list[ClassCount]:
    """The classes by id with the number of their images, without excluded ones."""
    query = (
        "SELECT c.\"index\", name, SUM(split = 'train'), SUM(split = 'test') FROM labelled_class c"
        " LEFT JOIN labelled l ON COALESCE(l.given, l.clean) = c.\"index\" AND l.status != 'excluded'"
        ' GROUP BY c."index" ORDER BY c."index"'
    )
    with open_index(folder, version) as index:
        return [ClassCount(number, name, train or 0, test or 0) for number, name, train, test in index.execute(query)]


def read_images(
    folder: Path,
    *,
    split: Split | None = None,
    status: Collection[str] | None = None,
    numbers: Collection[int] | None = None,
    version: int = label_versions.UPLOADED,
) -> list[ImageRecord]:
    """Images in the order of their numbers: those of the train split come first. `image_query` finds them by more.

    Args:
        folder: The data set.
        split: Only images of this split.
        status: Only images whose label has one of these statuses; see `label_versions.LabelStatus`.
        numbers: Only images with one of these numbers.
        version: Of the labels.
    """
    where, values = ["1"], list[object]()
    if split is not None:
        where.append("split = ?")
        values.append(split)
    if status is not None:
        where.append(f"status IN ({','.join('?' * len(status))})")
        values.extend(status)
    with open_index(folder, version) as index:
        if numbers is not None:
            index.execute("CREATE TEMP TABLE requested (number INTEGER PRIMARY KEY)")
            index.executemany("INSERT OR IGNORE INTO requested VALUES (?)", ((number,) for number in numbers))
            where.append('"index" IN (SELECT number FROM requested)')
        query = f'{SELECT_IMAGES} WHERE {" AND ".join(where)} ORDER BY "index"'
        return [ImageRecord(*row) for row in index.execute(query, values)]


def read_label_columns(folder: Path, version: int = label_versions.UPLOADED) -> LabelColumns:
    """The labels of all images: what a training needs of the index, in a quarter of the time of `read_images`."""
    columns = array("q"), array("q"), array("b"), array("b")
    query = (
        "SELECT COALESCE(given, :none), COALESCE(clean, :none), status = 'excluded', status = 'confirmed' FROM labelled"
        ' ORDER BY "index"'
    )
    with open_index(folder, version) as index:
        rows = index.execute(query, {"none": NO_LABEL})
        while part := rows.fetchmany(ROWS_READ):
            for column, values in zip(columns, zip(*part, strict=True), strict=True):
                column.extend(values)
        (train,) = index.execute("SELECT COUNT(*) FROM main.image WHERE split = 'train'").fetchone()
    return LabelColumns(*columns, train)


def read_included(folder: Path, version: int, split: Split | None = None) -> list[ImageRecord]:
    """The images that a version of the labels does not exclude, in the order of their numbers."""
    included = [status for status in label_versions.STATUSES if status != "excluded"]
    return read_images(folder, split=split, status=included, version=version)


def find_image(folder: Path, reference: int | str, version: int = label_versions.UPLOADED) -> ImageRecord | None:
    """One image by its number or by its path in the archive; None where there is none."""
    column = "path" if isinstance(reference, str) else '"index"'
    with open_index(folder, version) as index, contextlib.suppress(OverflowError, UnicodeEncodeError):
        row = index.execute(f"{SELECT_IMAGES} WHERE {column} = ?", (reference,)).fetchone()
        if row is not None:
            return ImageRecord(*row)
    return None


def read_original(folder: Path, image: ImageRecord) -> bytes:
    """The bytes of an image as they were uploaded; DatasetFormatError where the archive is damaged."""
    with archive.reader(folder / ARCHIVE_FILE) as read:
        return read(image)


def read_report(
    folder: Path, *, level: Level | None = None, code: str | None = None, after: int = 0, limit: int = -1
) -> list[ReportLine]:
    """Lines of the report in their order.

    Args:
        folder: The data set.
        level: Only lines of this level.
        code: Only lines with this code.
        after: Only lines with a higher number; they count from 1.
        limit: At most so many; -1 for all.
    """
    with open_index(folder) as index:
        return [ReportLine(*row) for row in index.execute(SELECT_REPORT, (after, level, code, limit))]


def summarize_report(folder: Path) -> dict[Level, dict[str, int]]:
    """How many lines the report has, by level and code."""
    summary: dict[Level, dict[str, int]] = {"excluded": {}, "warning": {}, "ignored": {}}
    query = "SELECT level, code, COUNT(*) FROM report GROUP BY level, code ORDER BY level, code"
    with open_index(folder) as index:
        for level, code, count in index.execute(query):
            summary[level][code] = count
    return summary
