"""Representations of data sets. Names of files and columns are display text; no path of a client is ever opened."""

from __future__ import annotations

import functools
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, Field

from app.datasets import label_issues, service
from app.datasets.contents import CONTENT_TYPES
from app.datasets.label_issues import ImageAction, ImageFindings
from app.db.tables import Dataset, State
from app.errors import type_of
from ml.formats import dataset_index, records
from ml.formats.image_query import ImageMatch
from ml.formats.records import Level, Split

Status = Literal["ingesting", "ready", "failed"]
WARNINGS_SHOWN = 100


class ReportLine(BaseModel):
    path: str
    code: str
    detail: str
    level: Level


class ReportSummary(BaseModel):
    """Counts of the report and its first warnings; the whole report is at /datasets/{id}/report."""

    excluded: int = Field(description="Images left out")
    ignored: int = Field(description="Files that are not images")
    by_code: dict[Level, dict[str, int]] = Field(description="Lines by level and code")
    warnings: list[ReportLine] = Field(description="The first hundred")
    total_warnings: int


class Agreement(BaseModel):
    """Shares of an annotator's votes that equal the consensus, by each rule; null without votes."""

    majority: float | None
    dawid_skene: float | None


class AnnotatorOut(BaseModel):
    name: str
    votes: int
    agreement: Agreement


class DatasetOut(BaseModel):
    id: uuid.UUID
    name: str
    status: Status
    label_version: int
    label_column: str | None
    clean_column: str | None
    annotators: list[AnnotatorOut] | None = Field(
        description="Annotators whose votes were uploaded (`annotator_columns`); null without any"
    )
    size_bytes: int = Field(description="Size of the upload")
    sha256: str = Field(description="SHA-256 of the upload")
    digest: str | None = Field(description="Hash of images, labels and splits, whatever archive they came in")
    classes: list[str] | None = Field(description="Sorted; the position is the class id")
    counts: dict[Split, dict[str, int]] | None = Field(
        description="Images by split and class, in the newest label version; excluded images do not count"
    )
    images: int | None
    image_size: int | None = Field(description="Suggested side for training")
    facts: dict[str, Any] | None = Field(description="All measurements of the ingest")
    report: ReportSummary | None
    progress: dict[str, Any] | None
    error: dict[str, Any] | None = Field(description="A problem: type, code, title, detail, and errors naming entries")
    request_id: str | None
    created_at: datetime
    finished_at: datetime | None


class DatasetContents(BaseModel):
    """What the files of a ready data set hold."""

    classes: list[str]
    counts: dict[Split, dict[str, int]]
    report: ReportSummary


@functools.lru_cache(maxsize=512)
def read_contents(folder: Path, version: int) -> DatasetContents:
    """What the files of a ready data set hold, with a version of its labels.

    Cached: neither ever changes, and no id is used twice.
    """
    counts = dataset_index.count_classes(folder, version)
    by_code = dataset_index.summarize_report(folder)
    warnings = dataset_index.read_report(folder, level="warning", limit=WARNINGS_SHOWN)
    return DatasetContents(
        classes=[c.name for c in counts],
        counts={"train": {c.name: c.train for c in counts}, "test": {c.name: c.test for c in counts}},
        report=ReportSummary(
            excluded=sum(by_code["excluded"].values()),
            ignored=sum(by_code["ignored"].values()),
            by_code=by_code,
            warnings=[report_line(line) for line in warnings],
            total_warnings=sum(by_code["warning"].values()),
        ),
    )


def report_line(line: records.ReportLine) -> ReportLine:
    """The representation of a line of the report."""
    return ReportLine(path=line.path, code=line.code, detail=line.detail, level=line.level)


def dataset_out(row: Dataset, contents: DatasetContents | None) -> DatasetOut:
    """The representation of a data set; `contents` are those of its files, None unless it is ready."""
    facts = row.facts or {}
    ready = row.state == State.succeeded
    return DatasetOut(
        id=row.id,
        name=row.name,
        status=service.STATUS[row.state],
        label_version=row.label_version,
        label_column=facts.get("label_column") or row.upload.get("label_column"),
        clean_column=row.upload.get("clean_column"),
        annotators=facts.get("annotators"),
        size_bytes=row.upload.get("size_bytes", 0),
        sha256=row.upload.get("sha256", ""),
        digest=facts.get("digest"),
        classes=contents.classes if contents else None,
        counts=contents.counts if contents else None,
        images=facts["train_images"] + facts["test_images"] if ready and "train_images" in facts else None,
        image_size=facts.get("image_size"),
        facts=row.facts,
        report=contents.report if contents else None,
        progress=None if ready else row.progress,
        error=row.error and {"type": type_of(row.error["code"]), **row.error},
        request_id=row.request_id,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )


class ImageOut(BaseModel):
    index: int
    path: str
    split: Split
    given_label: str | None = Field(description="In the requested version of the labels")
    action: ImageAction
    clean_label: str | None
    width: int = Field(description="Upright, after EXIF orientation")
    height: int
    sha256: str
    size_bytes: int
    media_type: str
    findings: ImageFindings | None = Field(description="Of the requested job; null without one")
    similarity: float | None = Field(description="Cosine to the image of `like`, in [-1, 1]; null without it")


def image_out(match: ImageMatch, classes: list[str], predictions: list[str]) -> ImageOut:
    """The representation of an image.

    Args:
        match: The image, and what a job found out about it.
        classes: Names of the labels by class id.
        predictions: Names of the job's classes by class id.
    """
    image, result = match.image, match.result
    return ImageOut(
        index=image.number,
        path=image.path,
        split=image.split,
        given_label=None if image.given is None else classes[image.given],
        action=cast("ImageAction", image.status),
        clean_label=None if image.clean is None else classes[image.clean],
        width=image.width,
        height=image.height,
        sha256=image.sha256,
        size_bytes=image.image_bytes,
        media_type=CONTENT_TYPES[image.format],
        findings=None if result is None else ImageFindings(**label_issues.findings(result, predictions)),
        similarity=match.similarity,
    )
