"""What a job found out about each image of its data set: an SQLite file among its artifacts, written once.

`ml.formats.image_query` joins it with the index of the data set. It repeats paths, splits and labels, so that it can be
read when the data set is gone.
"""

from __future__ import annotations

import contextlib
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml.formats import dataset_index, fsync, label_versions
from ml.formats.records import Level, ReportLine, Split

FILE_NAME = "image-results.sqlite"
SUGGESTIONS = 3  # classes that are suggested for an image

SCHEMA = """
CREATE TABLE class ("index" INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE result (image INTEGER PRIMARY KEY, path TEXT NOT NULL, split TEXT NOT NULL, given_label INTEGER,
  held_out INTEGER NOT NULL, model INTEGER, predicted INTEGER, label_score REAL, is_label_issue INTEGER,
  second INTEGER, third INTEGER, confidence REAL, second_confidence REAL, third_confidence REAL,
  cx REAL, cy REAL, sigma_x REAL, sigma_y REAL, outlier_distance REAL, is_outlier INTEGER, duplicate_set INTEGER);
CREATE TABLE neighbours (image INTEGER PRIMARY KEY, images BLOB NOT NULL, similarities BLOB NOT NULL);
CREATE TABLE report (path TEXT NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL, level TEXT NOT NULL);
"""
INDEXES = """
CREATE INDEX result_by_score ON result (label_score, image) WHERE label_score IS NOT NULL;
CREATE INDEX result_by_set ON result (duplicate_set, image) WHERE duplicate_set IS NOT NULL;
"""


class ImageResult(NamedTuple):
    """What a job found out about one image. Classes are class ids of the job; None is what it does not know.

    Args:
        image: Number of the image in the data set.
        path: Its path.
        split: Its split.
        given_label: What the job learned from, injected noise included; of a test image the label it was measured by.
        held_out: Whether it was held out of training for validation.
        model: What the finished model predicts.
        predicted: The class that is suggested: of a training image by the ranking, of a test image `model`.
        label_score: In [0, 1], low is suspicious; of training images.
        is_label_issue: Whether the label is flagged; of training images.
        second: The next class, as `third` is the one after it.
        third: See `second`.
        confidence: Probability of `predicted`, in [0, 1].
        second_confidence: Of `second`.
        third_confidence: Of `third`.
        cx: Centre of the Gaussian where the object is, in pixels of the original.
        cy: See `cx`.
        sigma_x: Its deviations.
        sigma_y: See `sigma_x`.
        outlier_distance: Mean distance to the nearest images, 1 - cosine of embeddings, in [0, 2].
        is_outlier: Whether that is far beyond the others.
        duplicate_set: The lowest number among images that look the same; None where no other does.
    """

    image: int
    path: str
    split: Split
    given_label: int | None
    held_out: bool
    model: int | None = None
    predicted: int | None = None
    label_score: float | None = None
    is_label_issue: bool | None = None
    second: int | None = None
    third: int | None = None
    confidence: float | None = None
    second_confidence: float | None = None
    third_confidence: float | None = None
    cx: float | None = None
    cy: float | None = None
    sigma_x: float | None = None
    sigma_y: float | None = None
    outlier_distance: float | None = None
    is_outlier: bool | None = None
    duplicate_set: int | None = None

    @property
    def number(self) -> int:
        """The number of the image."""
        return self.image


COLUMNS = ImageResult._fields
INSERT = f"INSERT INTO result VALUES ({','.join('?' * len(COLUMNS))})"  # noqa: S608  # names of our own
SELECT = f"SELECT {', '.join(COLUMNS)} FROM result ORDER BY image"  # noqa: S608


class Neighbour(NamedTuple):
    """An image that looks like another one."""

    image: int
    similarity: float  # cosine of the embeddings


def write(
    path: Path,
    classes: Sequence[str],
    results: Iterable[ImageResult],
    neighbours: Mapping[int, Sequence[Neighbour]] | None = None,
    report: Iterable[ReportLine] = (),
) -> None:
    """Write the file and flush it to disk.

    Args:
        path: The file; it must not exist.
        classes: Names by class id.
        results: One an image.
        neighbours: The nearest images of each, the nearest first.
        report: What the owner of the data set should know of single images.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + SCHEMA)
        file.execute("BEGIN")
        file.executemany("INSERT INTO class VALUES (?,?)", enumerate(classes))
        file.executemany(INSERT, results)
        file.executemany(
            "INSERT INTO neighbours VALUES (?,?,?)",
            (
                (
                    image,
                    array("I", [other.image for other in others]).tobytes(),
                    array("f", [other.similarity for other in others]).tobytes(),
                )
                for image, others in (neighbours or {}).items()
            ),
        )
        file.executemany("INSERT INTO report VALUES (?,?,?,?)", (line[:4] for line in report))
        file.execute("COMMIT")
        file.executescript(INDEXES + "ANALYZE;")
    path.chmod(0o600)
    fsync.flush(path)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    with label_versions.opened(path) as file:
        yield file


def read_classes(path: Path) -> list[str]:
    """Names by class id."""
    with _open(path) as file:
        return [name for (name,) in file.execute('SELECT name FROM class ORDER BY "index"')]


def read_all(path: Path) -> list[ImageResult]:
    """All results, by the number of the image."""
    with _open(path) as file:
        return [ImageResult(*row) for row in file.execute(SELECT)]


def count(path: Path) -> tuple[int, int]:
    """How many labels were ranked, and how many of them are flagged."""
    with _open(path) as file:
        ranked, issues = file.execute(
            "SELECT COUNT(*), SUM(is_label_issue) FROM result WHERE label_score IS NOT NULL"
        ).fetchone()
        return ranked, issues or 0


def read_neighbours(path: Path, image: int) -> list[Neighbour]:
    """The nearest images of one, the nearest first; none where they are not known."""
    with _open(path) as file:
        row = file.execute("SELECT images, similarities FROM neighbours WHERE image = ?", (image,)).fetchone()
    if row is None:
        return []
    return [Neighbour(*pair) for pair in zip(array("I", row[0]), array("f", row[1]), strict=True)]


def read_report(
    path: Path, *, level: Level | None = None, code: str | None = None, after: int = 0, limit: int = -1
) -> list[ReportLine]:
    """Its lines about single images; arguments as of `dataset_index.read_report`."""
    with _open(path) as file:
        return [ReportLine(*row) for row in file.execute(dataset_index.SELECT_REPORT, (after, level, code, limit))]
