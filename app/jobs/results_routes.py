"""Results of a job: /jobs/{id}/metrics, logs, label-issues, artifacts."""

from __future__ import annotations

import uuid
from pathlib import PurePath
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.datasets import image_filters, label_issues
from app.datasets.image_filters import Filters
from app.datasets.label_issues import LabelIssue
from app.db.tables import Dataset
from app.errors import ArtifactNotFound, RangeNotSatisfiable
from app.http import files as file_responses
from app.http import pages
from app.http.access import READ
from app.http.deps import Files, ReadSession
from app.http.openapi import BINARY, CSV, problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.jobs import results, service
from ml.formats import image_results, label_versions

router = Router(tags=["jobs"])
KINDS = {kind.split(";")[0] for kind in file_responses.MEDIA_TYPES.values()} | {"application/octet-stream"}
FILES = dict.fromkeys(sorted(KINDS), BINARY)


class Series(BaseModel):
    epoch: list[int]
    series: dict[str, list[float | None]] = Field(
        description="Each as long as `epoch`; nested scores have dotted names"
    )
    total_points: int


@router.get("/jobs/{job_id}/metrics", dependencies=[READ], response_model=Series)
def metrics(
    session: ReadSession,
    job_id: uuid.UUID,
    max_points: Annotated[
        int, Query(ge=1, le=100_000, description="Most points, evenly spaced; the first and the last are among them")
    ] = 1000,
) -> Series:
    """Epoch reports as columns."""
    service.get(session, job_id)
    reports = service.epoch_reports(session, job_id)
    epochs, series = results.to_columns(reports, max_points)
    return Series(epoch=epochs, series=series, total_points=len(reports))


@router.get(
    "/jobs/{job_id}/logs",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            }
        }
    },
)
def logs(
    request: Request,
    session: ReadSession,
    files: Files,
    job_id: uuid.UUID,
    format: Annotated[
        Literal["text", "ndjson"] | None, Query(description="By default the Accept header decides")
    ] = None,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Only lines of this attempt")] = None,
    last: Annotated[int, Query(ge=1, le=100_000, description="Number of lines, counted from the end")] = 1000,
) -> Response:
    """Log lines of the attempts, oldest first."""
    service.get(session, job_id)
    lines = results.log_lines(files, job_id, attempt, last)
    if format == "ndjson" or (format is None and "application/x-ndjson" in request.headers.get("accept", "")):
        return StreamingResponse((f"{line}\n" for line in lines), media_type="application/x-ndjson")
    readable = (f"{results.format_log_line(line)}\n" for line in lines)
    return StreamingResponse(readable, media_type="text/plain; charset=utf-8")


class LabelIssues(Page[LabelIssue]):
    """The labels of a job, ranked."""

    total: int = Field(description="How many images are ranked")
    issues: int = Field(description="How many of them are flagged")


@router.get(
    "/jobs/{job_id}/label-issues",
    dependencies=[READ],
    response_model=LabelIssues,
    responses={200: CSV, **problems(ArtifactNotFound)},
)
def list_label_issues(
    request: Request, session: ReadSession, files: Files, paging: Paging, filters: Filters, job_id: uuid.UUID
) -> Any:
    """Training images, the most suspicious label first: a page as JSON, all of them as CSV.

    The filter `label` means the label that the job has judged; `action` is that of the newest label version.
    """
    job = service.get(session, job_id)
    file = label_issues.find_results(files, job_id)
    classes = image_results.read_classes(file)
    image_filters.check_classes(filters, classes, classes)
    query = filters.query(default_order="score", judged=True)
    dataset = None if job.dataset_id is None else session.get(Dataset, job.dataset_id)
    folder, version = None, label_versions.UPLOADED
    if dataset is not None and files.find_dataset(dataset.id) is not None:
        folder, version = files.fetch_dataset(dataset.id, dataset.label_version), dataset.label_version
    if file_responses.wants_csv(request):
        return file_responses.csv_table(f"label-issues-{job_id}", *label_issues.table(file, query, folder, version))
    matches, cursor = image_filters.page(folder, query, paging, version=version, results=file)
    total, issues = image_results.count(file)
    items = [label_issues.label_issue_out(row, classes) for row in matches]
    return LabelIssues(items=items, next_cursor=cursor, total=total, issues=issues)


class Artifact(BaseModel):
    name: str
    size_bytes: int
    sha256: str
    media_type: str


@router.get("/jobs/{job_id}/artifacts", dependencies=[READ], response_model=Page[Artifact])
def artifacts(session: ReadSession, files: Files, paging: Paging, job_id: uuid.UUID) -> Page[Artifact]:
    """Files of the newest attempt, and the exported model."""
    job = service.get(session, job_id)
    available = results.artifacts(files, job_id, service.model_ids(session, [job]).get(job_id))
    page, cursor = pages.slice_page(list(available.items()), paging)
    items = [
        Artifact(
            name=name,
            size_bytes=file.size,
            sha256=file.sha256 or file_responses.size_and_sha256(file.fetch())[1],
            media_type=file_responses.MEDIA_TYPES.get(PurePath(name).suffix, "application/octet-stream"),
        )
        for name, file in page
    ]
    return Page(items=items, next_cursor=cursor)


@router.get(
    "/jobs/{job_id}/artifacts/{name}",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {"content": FILES},
        206: {"description": "The requested range", "content": FILES},
        **problems(RangeNotSatisfiable, ArtifactNotFound),
    },
)
def artifact(request: Request, session: ReadSession, files: Files, job_id: uuid.UUID, name: str) -> Response:
    """Download one file: `Range` for a part, `Repr-Digest` and ETag to check it."""
    job = service.get(session, job_id)
    available = results.artifacts(files, job_id, service.model_ids(session, [job]).get(job_id))
    return file_responses.download(request, results.artifact(available, name).fetch())
