"""What jobs found out about the images of a data set, as the API shows it. The names are cleanlab's.

`ml.formats.image_results` holds it, `ml.formats.image_query` finds images by it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Job, State
from app.errors import ArtifactNotFound, JobNotFound
from app.storage import Storage
from ml.formats import csv_cells, image_query, image_results, label_versions
from ml.formats.image_query import ImageMatch, ImageQuery
from ml.formats.image_results import ImageResult
from ml.formats.label_versions import LabelStatus
from ml.formats.records import Split

FILE_NAME = "label-issues.csv"
COLUMNS = (
    "index", "path", "split", "given_label", "predicted_label", "label_score", "is_label_issue", "confidence",
    "second_label", "second_confidence", "third_label", "third_confidence",
)  # fmt: skip
ImageAction = LabelStatus
"""What edits have done with an image's label. The API calls a `label_versions.LabelStatus` an action."""


class Gaussian(BaseModel):
    cx: float
    cy: float
    sigma_x: float
    sigma_y: float


class LocalizationMask(BaseModel):
    """Where the localization module points, in pixels of the original image."""

    space: Literal["image_pixels"] = "image_pixels"
    gaussian: Gaussian


class Suggestion(BaseModel):
    label: str
    confidence: float | None = Field(description="Probability of this class, in [0, 1]")


class ImageFindings(BaseModel):
    """What a job found out about an image; null where it does not know."""

    predicted_label: str | None = Field(description="The suggested class")
    suggestions: list[Suggestion] = Field(description="The likeliest classes; the first is `predicted_label`")
    model_label: str | None = Field(description="What the finished model predicts")
    label_score: float | None = Field(description="In [0, 1]; low is suspicious. Only training images have one")
    is_label_issue: bool | None
    held_out: bool = Field(description="Held out of training for validation")
    is_outlier: bool | None = Field(description="Far from all other images")
    duplicate_set: int | None = Field(description="Images that look the same have the same number; null for others")
    mask: LocalizationMask | None


class LabelIssue(ImageFindings):
    index: int
    path: str
    split: Split
    given_label: str | None = Field(description="The label that the job has judged")
    action: ImageAction = Field(description="In the newest version of the labels")


def find_results(storage: Storage, job_id: uuid.UUID) -> Path:
    """The file of the newest attempt at a job that has results of images; ArtifactNotFound."""
    path = storage.find_artifact(job_id, image_results.FILE_NAME)
    if path is None:
        raise ArtifactNotFound("This job has no label ranking; a finished training has one.")
    return path


def results_of(session: Session, storage: Storage, job_id: uuid.UUID, dataset_id: uuid.UUID) -> Path:
    """The file of a job of this data set; JobNotFound where it is none, ArtifactNotFound where it has no results."""
    job = session.get(Job, job_id)
    if job is None or job.dataset_id != dataset_id:
        raise JobNotFound("This data set has no job with this id.")
    return find_results(storage, job_id)


def newest_results(session: Session, storage: Storage, dataset_id: uuid.UUID) -> Path:
    """The file of the newest of the last 20 finished trainings on a data set; ArtifactNotFound when none has one."""
    finished = (Job.dataset_id == dataset_id, Job.type == "train", Job.state == State.succeeded)
    for job_id in session.scalars(select(Job.id).where(*finished).order_by(Job.created_at.desc()).limit(20)):
        try:
            return find_results(storage, job_id)
        except ArtifactNotFound:
            continue
    raise ArtifactNotFound("No finished training has ranked the labels of this data set.")


def table(
    results: Path, query: ImageQuery, folder: Path | None = None, version: int = label_versions.UPLOADED
) -> tuple[tuple[str, ...], Iterator[list[object]]]:
    """Ranked labels as a table: names of its columns, and its rows; arguments as of `image_query.find`."""
    classes = image_results.read_classes(results)
    matches = image_query.find(folder, query, version=version, results=results)
    rows = [row.result for row in matches if row.result is not None]
    localized = any(row.cx is not None for row in rows)

    def cells(row: ImageResult) -> list[object]:
        named = [_name(classes, row.given_label), _name(classes, row.predicted)]
        further = [
            row.confidence, _name(classes, row.second), row.second_confidence, _name(classes, row.third),
            row.third_confidence,
        ]  # fmt: skip
        gaussian = [None if value is None else f"{value:.2f}" for value in (row.cx, row.cy, row.sigma_x, row.sigma_y)]
        score = None if row.label_score is None else f"{row.label_score:.6f}"
        flagged = bool(row.is_label_issue)
        return [row.image, row.path, row.split, *named, score, flagged, *further, *(gaussian if localized else ())]

    return (*COLUMNS, *(csv_cells.GAUSSIAN_COLUMNS if localized else ())), map(cells, rows)


def findings(result: ImageResult, classes: list[str]) -> dict[str, Any]:
    """The fields of `ImageFindings` of one image; `classes` are the job's names by class id."""
    pairs = (
        (result.predicted, result.confidence),
        (result.second, result.second_confidence),
        (result.third, result.third_confidence),
    )
    return {
        "predicted_label": _name(classes, result.predicted),
        "suggestions": [Suggestion(label=classes[number], confidence=p) for number, p in pairs if number is not None],
        "model_label": _name(classes, result.model),
        "label_score": result.label_score,
        "is_label_issue": None if result.is_label_issue is None else bool(result.is_label_issue),
        "held_out": bool(result.held_out),
        "is_outlier": None if result.is_outlier is None else bool(result.is_outlier),
        "duplicate_set": result.duplicate_set,
        "mask": _mask(result),
    }


def label_issue_out(match: ImageMatch, classes: list[str]) -> LabelIssue:
    """The representation of a ranked image; `classes` are the job's names by class id."""
    result = match.result
    assert result is not None, "a query by label score finds images with one"
    return LabelIssue(
        index=result.image,
        path=result.path,
        split=result.split,
        given_label=_name(classes, result.given_label),
        action=cast("ImageAction", match.image.status),
        **findings(result, classes),
    )


def _mask(result: ImageResult) -> LocalizationMask | None:
    if result.cx is None or result.cy is None or result.sigma_x is None or result.sigma_y is None:
        return None
    gaussian = Gaussian(cx=result.cx, cy=result.cy, sigma_x=result.sigma_x, sigma_y=result.sigma_y)
    return LocalizationMask(gaussian=gaussian)


def _name(classes: list[str], number: int | None) -> str | None:
    return None if number is None else classes[number]
