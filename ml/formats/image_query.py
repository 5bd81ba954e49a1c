"""Finds images of a data set by what its labels and a job's results say of them; in a stable order, page by page."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml.formats import dataset_index, image_results, label_versions
from ml.formats.image_results import ImageResult
from ml.formats.records import ImageRecord, Split

Order = Literal["index", "score", "path", "similarity"]

# Without the data set its results stand in for it; without results nothing is known.
RESULTS_AS_DATASET = """
CREATE TEMP VIEW labelled_class AS SELECT "index", name FROM job.class;
CREATE TEMP VIEW labelled AS SELECT image AS "index", path, split, given_label AS given, NULL AS clean, 0 AS width,
  0 AS height, 0 AS offset, 0 AS stored_bytes, 0 AS deflated, 0 AS image_bytes, NULL AS crc, '' AS sha256,
  '' AS format, 'unreviewed' AS status FROM job.result;
"""
IMAGE_COLUMNS = ", ".join(f"i.{column}" for column in dataset_index.IMAGE_COLUMNS)
IMAGE_FIELDS = len(ImageRecord._fields)
RESULT_COLUMNS = ", ".join(f"r.{column}" for column in image_results.COLUMNS)


@dataclass(frozen=True)
class ImageQuery:
    """Which images, and in what order. All conditions must hold; None is no condition.

    Conditions on results, and the orders score and similarity, need a job's results: images without one are left out.

    Attributes:
        numbers: One of these.
        split: Of this split.
        label: The label has this name, by the version that is read.
        judged_label: The label that the job has judged has this name.
        status: The label has one of these statuses; see `label_versions.LabelStatus`.
        text: The path contains this text; case does not matter for ASCII letters.
        predicted: The class that is suggested has this name.
        model: The class that the finished model predicts has this name.
        is_label_issue: The label is flagged, or is not.
        score_below: The label score is lower.
        score_from: The label score is at least this.
        is_outlier: The image is far from all others, or is not.
        is_near_duplicate: Another image looks the same, or none does.
        like: Only the images most similar to the one with this number.
        order: By number; by label score, the most suspicious first; by path; or by similarity, which `like` needs.
    """

    numbers: Collection[int] | None = None
    split: Split | None = None
    label: str | None = None
    judged_label: str | None = None
    status: Collection[str] | None = None
    text: str | None = None
    predicted: str | None = None
    model: str | None = None
    is_label_issue: bool | None = None
    score_below: float | None = None
    score_from: float | None = None
    is_outlier: bool | None = None
    is_near_duplicate: bool | None = None
    like: int | None = None
    order: Order = "index"

    @property
    def needs_results(self) -> bool:
        """Whether a condition or the order is about results."""
        conditions = (
            self.judged_label, self.predicted, self.model, self.is_label_issue, self.score_below, self.score_from,
            self.is_outlier, self.is_near_duplicate, self.like,
        )  # fmt: skip
        return self.order in ("score", "similarity") or any(condition is not None for condition in conditions)

    @property
    def is_selective(self) -> bool:
        """Whether few images may be meant, so that sorting those is faster than looking for them in the order."""
        conditions = (
            self.numbers, self.split, self.label, self.judged_label, self.status, self.text, self.predicted, self.model,
            self.is_outlier, self.is_near_duplicate,
        )  # fmt: skip
        return any(condition is not None for condition in conditions)


class ImageMatch(NamedTuple):
    """An image, and what the job found out about it.

    Attributes:
        image: As the index has it; without the data set only its path, split, number and label are known.
        result: None without a job, or where the job has not used the image.
        similarity: To the image of `ImageQuery.like`; None without one.
        position: Where it stands in the order: the next page begins after it.
    """

    image: ImageRecord
    result: ImageResult | None
    similarity: float | None
    position: tuple[Any, ...]


@contextlib.contextmanager
def _open(folder: Path | None, version: int, results: Path | None) -> Iterator[sqlite3.Connection]:
    """The views `labelled` and `labelled_class`, and with results the schema `job`."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            stack.enter_context(label_versions.checked_reads())
            database = stack.enter_context(contextlib.closing(sqlite3.connect(":memory:", uri=True)))
        else:
            database = stack.enter_context(dataset_index.open_index(folder, version))
        if results is not None:
            database.execute("ATTACH ? AS job", (label_versions.read_only(results),))
        if folder is None:
            database.executescript(RESULTS_AS_DATASET)
        yield database


def find(
    folder: Path | None,
    query: ImageQuery,
    *,
    version: int = label_versions.UPLOADED,
    results: Path | None = None,
    after: Sequence[Any] | None = None,
    limit: int = -1,
) -> list[ImageMatch]:
    """The images that a query means, in its order.

    Args:
        folder: The data set; None where it is gone and `results` stand in for it.
        query: Which images; one that `needs_results` finds nothing without `results`.
        version: Of the labels.
        results: What a job found out: the file of `ml.formats.image_results`.
        after: Only images after this `ImageMatch.position`.
        limit: At most so many; -1 for all.
    """
    if results is None and query.needs_results:
        return []
    with _open(folder, version, results) as database:
        tables, order = _tables(database, query, results)
        conditions, values = _conditions(query)
        if after is not None:
            conditions.append(f"({', '.join(order)}) > ({', '.join('?' * len(order))})")
            values.extend(after)
        result_columns = RESULT_COLUMNS if results is not None else ", ".join(["NULL"] * len(image_results.COLUMNS))
        similarity = "near.similarity" if query.like is not None else "NULL"
        columns = f"{IMAGE_COLUMNS}, {result_columns}, {similarity}, {', '.join(order)}"
        where = f"{' AND '.join(conditions)} ORDER BY {', '.join(order)} LIMIT ?"
        select = f"SELECT {columns} FROM {tables} WHERE {where}"  # noqa: S608  # of names of our own
        return [_to_match(row) for row in database.execute(select, (*values, limit))]


def _to_match(row: tuple[Any, ...]) -> ImageMatch:
    image, result = row[:IMAGE_FIELDS], row[IMAGE_FIELDS : IMAGE_FIELDS + len(image_results.COLUMNS)]
    similarity, *position = row[IMAGE_FIELDS + len(image_results.COLUMNS) :]
    return ImageMatch(
        ImageRecord(*image), None if result[0] is None else ImageResult(*result), similarity, tuple(position)
    )


def _tables(database: sqlite3.Connection, query: ImageQuery, results: Path | None) -> tuple[str, tuple[str, ...]]:
    """What is selected from, the table that gives the order first; and the columns of the order.

    CROSS JOIN keeps SQLite from choosing another table to begin with, which would have to be sorted.
    """
    images = "labelled i"
    if results is None:
        return images, ('i."index"',) if query.order == "index" else ("i.path",)
    of_image = 'job.result r ON r.image = i."index"'
    if query.like is not None:
        database.execute("CREATE TEMP TABLE near (rank INTEGER PRIMARY KEY, image INTEGER, similarity REAL)")
        database.executemany(
            "INSERT INTO near VALUES (?,?,?)",
            ((rank, *near) for rank, near in enumerate(image_results.read_neighbours(results, query.like))),
        )
        tables = f'near CROSS JOIN {images} ON i."index" = near.image JOIN {of_image}'
        if query.order == "similarity":
            return tables, ("near.rank",)
    elif query.order == "score" and not query.is_selective:
        return f'job.result r CROSS JOIN {images} ON i."index" = r.image', ("r.label_score", "r.image")
    else:
        tables = f"{images} {'CROSS' if query.needs_results else 'LEFT'} JOIN {of_image}"
    return tables, {"index": ('i."index"',), "path": ("i.path",), "score": ("r.label_score", "r.image")}[query.order]


def _conditions(query: ImageQuery) -> tuple[list[str], list[Any]]:
    """The conditions as SQL, and the values for its placeholders."""
    of_version = '(SELECT "index" FROM labelled_class WHERE name = ?)'
    of_job = '(SELECT "index" FROM job.class WHERE name = ?)'
    optional: list[tuple[str, Any]] = [
        ("i.split = ?", query.split),
        (f"i.given = {of_version}", query.label),
        ("instr(lower(i.path), lower(?)) > 0", query.text),
        (f"r.given_label = {of_job}", query.judged_label),
        (f"r.predicted = {of_job}", query.predicted),
        (f"r.model = {of_job}", query.model),
        ("r.is_label_issue = ?", query.is_label_issue),
        ("r.label_score < ?", query.score_below),
        ("r.label_score >= ?", query.score_from),
        ("r.is_outlier = ?", query.is_outlier),
        ("(r.duplicate_set IS NOT NULL) = ?", query.is_near_duplicate),
    ]
    used = [(condition, value) for condition, value in optional if value is not None]
    conditions, values = [condition for condition, _ in used], [value for _, value in used]
    for column, choices in (("i.status", query.status), ('i."index"', query.numbers)):
        if choices is not None:
            conditions.append(f"{column} IN ({','.join('?' * len(choices))})")
            values.extend(choices)
    if query.order == "score":
        conditions.append("r.label_score IS NOT NULL")
    return conditions or ["1"], values
