"""The label ranking that an attempt left as CSV: read, worst first, in cleanlab's words.

How a score comes about, `ml` knows; which job's ranking is meant, the caller does.
"""

from __future__ import annotations

import csv
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Job, State
from app.errors import ArtifactNotFound
from app.storage import Storage

FILE = "label-issues.csv"
GAUSSIAN = ("cx", "cy", "sigma_x", "sigma_y")


class Gaussian(BaseModel):
    cx: float
    cy: float
    sigma_x: float
    sigma_y: float


class Mask(BaseModel):
    """Where the network looks, in pixels of the original picture."""

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
    mask: Mask | None


def find(storage: Storage, job_id: uuid.UUID) -> Path:
    """The ranking of the newest attempt that has one; ArtifactNotFound."""
    for attempt in storage.attempts(job_id):
        path = attempt / "artifacts" / FILE
        if path.is_file():
            return path
    raise ArtifactNotFound("This job has no label ranking; a finished training has one.")


def newest_ranking(session: Session, storage: Storage, dataset_id: uuid.UUID) -> Path:
    """The ranking of the newest training on a data set; ArtifactNotFound."""
    finished = (Job.dataset_id == dataset_id, Job.type == "train", Job.state == State.succeeded)
    for job_id in session.scalars(select(Job.id).where(*finished).order_by(Job.created_at.desc()).limit(20)):
        try:
            return find(storage, job_id)
        except ArtifactNotFound:
            continue
    raise ArtifactNotFound("No finished training has ranked the labels of this data set.")


def read(path: Path) -> list[dict[str, str]]:
    """Every row as text, worst label first."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: (_number(row.get("label_score")) is None, _number(row.get("label_score")) or 0.0))
    return rows


def indexes(path: Path, *, is_label_issue: bool) -> set[int]:
    """Indexes of the ranked images whose label is an issue, or is none."""
    with path.open(newline="", encoding="utf-8") as file:
        return {int(row["index"]) for row in csv.DictReader(file) if _true(row["is_label_issue"]) == is_label_issue}


def issue(row: dict[str, str]) -> LabelIssue:
    numbers = [_number(row.get(name)) for name in GAUSSIAN]
    known = [n for n in numbers if n is not None]
    mask = None
    if len(known) == len(GAUSSIAN):
        mask = Mask(space="image_pixels", gaussian=Gaussian(**dict(zip(GAUSSIAN, known, strict=True))))
    return LabelIssue(
        index=int(row["index"]),
        path=row["path"],
        split=row["split"],
        given_label=row["given_label"] or None,
        predicted_label=row["predicted_label"] or None,
        label_score=_number(row["label_score"]),
        is_label_issue=_true(row["is_label_issue"]),
        mask=mask,
    )


def typed(row: dict[str, str]) -> Iterator[Any]:
    """A row's cells with numbers as numbers, so that only text is neutralised in an export."""
    for name, value in row.items():
        yield value if name in {"path", "split", "given_label", "predicted_label", "is_label_issue"} else _number(value)


def _true(value: str) -> bool:
    return value.strip().lower() in {"true", "1"}


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value else None
    except ValueError:
        return None
    return number if number is None or (abs(number) != float("inf") and number == number) else None  # noqa: PLR0124
