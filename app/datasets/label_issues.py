"""The label ranking of a training, read from the CSV file among its artifacts; named in cleanlab's terms.

`ml.evaluation.ranking` computes the scores. A ranking never changes, so the last ones that were read are cached: all
pages of 150,000 rows cost reading the file once.
"""

from __future__ import annotations

import csv
import functools
import math
import sys
import uuid
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import csv_cells
from app.db.tables import Job, State
from app.errors import ArtifactNotFound
from app.storage import ARTIFACTS, Storage

FILE_NAME = "label-issues.csv"
CACHED_RANKINGS = 2  # one of 150,000 images takes about 60 MB


class RankedImage(NamedTuple):
    """A row of the file, in the order of its columns; without localization it has no Gaussian."""

    number: int
    path: str
    split: str
    given_label: str
    predicted_label: str
    label_score: float | None
    is_label_issue: bool
    cx: float | None = None
    cy: float | None = None
    sigma_x: float | None = None
    sigma_y: float | None = None


class Ranking(NamedTuple):
    """Every ranked image, the lowest label score first.

    Attributes:
        columns: Names of the columns of the file.
        rows: The images; those without a score come last.
        issues: How many labels are flagged as issues.
    """

    columns: tuple[str, ...]
    rows: tuple[RankedImage, ...]
    issues: int

    def where(self, is_label_issue: bool | None) -> tuple[RankedImage, ...]:
        """The rows whose `is_label_issue` has this value; all rows for None."""
        if is_label_issue is None:
            return self.rows
        return tuple(row for row in self.rows if row.is_label_issue == is_label_issue)


class Gaussian(BaseModel):
    cx: float
    cy: float
    sigma_x: float
    sigma_y: float


class LocalizationMask(BaseModel):
    """Where the localization module points, in pixels of the original image."""

    space: str
    gaussian: Gaussian


class LabelIssue(BaseModel):
    index: int
    path: str
    split: str
    given_label: str | None
    predicted_label: str | None
    label_score: float | None
    is_label_issue: bool
    mask: LocalizationMask | None


def find_ranking(storage: Storage, job_id: uuid.UUID) -> Path:
    """The file of the newest attempt at a job that has a ranking; ArtifactNotFound."""
    for attempt in storage.attempts(job_id):
        path = attempt / ARTIFACTS / FILE_NAME
        if path.is_file():
            return path
    raise ArtifactNotFound("This job has no label ranking; a finished training has one.")


def newest_ranking(session: Session, storage: Storage, dataset_id: uuid.UUID) -> Path:
    """The file of the newest of the last 20 finished trainings on a data set; ArtifactNotFound when none has one."""
    finished = (Job.dataset_id == dataset_id, Job.type == "train", Job.state == State.succeeded)
    for job_id in session.scalars(select(Job.id).where(*finished).order_by(Job.created_at.desc()).limit(20)):
        try:
            return find_ranking(storage, job_id)
        except ArtifactNotFound:
            continue
    raise ArtifactNotFound("No finished training has ranked the labels of this data set.")


def read(path: Path) -> Ranking:
    """The ranking in a file."""
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=CACHED_RANKINGS)
def _read(path: Path, size: int, changed_ns: int) -> Ranking:
    with path.open(newline="", encoding="utf-8") as file:
        cells = csv.reader(file)
        columns = tuple(next(cells))
        rows = [_parse_row(dict(zip(columns, row, strict=True))) for row in cells]
    rows.sort(key=lambda row: math.inf if row.label_score is None else row.label_score)
    return Ranking(columns, tuple(rows), sum(row.is_label_issue for row in rows))


def _parse_row(row: dict[str, str]) -> RankedImage:
    return RankedImage(
        int(row["index"]),
        csv_cells.unescape(row["path"]),
        sys.intern(row["split"]),
        sys.intern(csv_cells.unescape(row["given_label"])),
        sys.intern(csv_cells.unescape(row["predicted_label"])),
        _number(row["label_score"]),
        row["is_label_issue"].lower() == "true",
        *(_number(row.get(name, "")) for name in csv_cells.GAUSSIAN_COLUMNS),
    )


def label_issue_out(row: RankedImage) -> LabelIssue:
    """The representation of a ranked image."""
    mask = None
    if row.cx is not None and row.cy is not None and row.sigma_x is not None and row.sigma_y is not None:
        gaussian = Gaussian(cx=row.cx, cy=row.cy, sigma_x=row.sigma_x, sigma_y=row.sigma_y)
        mask = LocalizationMask(space="image_pixels", gaussian=gaussian)
    return LabelIssue(
        index=row.number,
        path=row.path,
        split=row.split,
        given_label=row.given_label or None,
        predicted_label=row.predicted_label or None,
        label_score=row.label_score,
        is_label_issue=row.is_label_issue,
        mask=mask,
    )


def _number(cell: str) -> float | None:
    number = float(cell) if cell else math.nan
    return number if math.isfinite(number) else None
