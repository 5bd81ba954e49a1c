"""/datasets: upload, list, look inside, delete."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import BackgroundTasks, Path, Query
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from app import storage
from app.datasets import contents, label_issues, schemas, service, upload_service
from app.datasets.schemas import Contained, DatasetOut, ImageOut, LabelVersion, Level, ReportLine, Split, Status
from app.db.tables import Dataset, State
from app.errors import (
    ArchiveRejected,
    ArtifactNotFound,
    Fault,
    ImageNotFound,
    InsufficientStorage,
    InUse,
    InvalidRequest,
    NotReady,
    QueueFull,
    RequestInFlight,
)
from app.http import files as answers
from app.http import pages
from app.http.access import READ, TRAIN
from app.http.deps import Files, Reading, Transaction
from app.http.idempotency import Idempotency
from app.http.openapi import problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.storage import Storage

router = Router(tags=["datasets"])
ImageIndex = Annotated[int, Path(ge=0, le=2**53)]
BINARY = {"schema": {"type": "string", "format": "binary"}}
UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "zip, tar, tar.gz or tar.zst"},
                    "name": {"type": "string", "maxLength": 200},
                    "label_column": {"type": "string", "maxLength": 200, "description": "The column to learn from"},
                    "clean_column": {"type": "string", "maxLength": 200, "description": "Truth, for measurement alone"},
                },
            }
        },
        "application/zip": BINARY,
        "application/x-tar": BINARY,
        "application/gzip": BINARY,
        "application/zstd": BINARY,
    },
}


@router.post(
    "/datasets",
    status_code=202,
    dependencies=[TRAIN],
    response_model=DatasetOut,
    openapi_extra={"requestBody": UPLOAD_BODY},
    responses=problems(ArchiveRejected, QueueFull, InsufficientStorage, RequestInFlight),
)
async def create(
    request: Request,
    background: BackgroundTasks,
    idempotency: Idempotency,
    name: Annotated[str | None, Query(max_length=200, description="Shown in lists")] = None,
    label_column: Annotated[str | None, Query(max_length=200, description="The column to learn from")] = None,
    clean_column: Annotated[str | None, Query(max_length=200, description="Truth, for measurement alone")] = None,
) -> Response:
    """Upload an archive: `multipart/form-data` with a `file`, or the archive itself as the body.

    Its structure is checked at once; its images are read afterwards (`status: ingesting`).
    """
    query = {"name": name, "label_column": label_column, "clean_column": clean_column}
    answer, fresh = await upload_service.take(request, idempotency, query)
    if fresh:
        background.add_task(request.app.state.notifier.notify, "datasets")
    return answer.response(replayed=not fresh)


@router.get("/datasets", dependencies=[READ], response_model=Page[DatasetOut])
def list_(session: Reading, files: Files, paging: Paging, status: Status | None = None) -> Page[DatasetOut]:
    """Data sets, newest first."""
    statement = select(Dataset)
    if status is not None:
        statement = statement.where(Dataset.state.in_(service.STATES[status]))
    rows, cursor = pages.newest(session, statement, Dataset, paging)
    return Page(items=[schemas.dataset_out(row, inside(files, row)) for row in rows], next_cursor=cursor)


@router.get("/datasets/{dataset_id}", dependencies=[READ], response_model=DatasetOut)
def get(session: Reading, files: Files, dataset_id: uuid.UUID) -> DatasetOut:
    row = service.get(session, dataset_id)
    return schemas.dataset_out(row, inside(files, row))


def inside(files: Storage, row: Dataset) -> Contained | None:
    folder = files.dataset(row.id)
    ready = row.state == State.succeeded and folder.is_dir()  # it may be going away this moment
    return schemas.contained(folder) if ready else None


@router.delete("/datasets/{dataset_id}", status_code=204, dependencies=[TRAIN], responses=problems(InUse))
def delete(session: Transaction, files: Files, background: BackgroundTasks, dataset_id: uuid.UUID) -> None:
    """Free the disk; 409 while a job uses it. Finished jobs and their models stay."""
    service.delete(session, dataset_id)
    background.add_task(storage.remove, files.dataset(dataset_id))
    background.add_task(storage.remove, files.upload(dataset_id))


@router.get(
    "/datasets/{dataset_id}/report",
    dependencies=[READ],
    response_model=Page[ReportLine],
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **problems(NotReady)},
)
def report(
    request: Request,
    session: Reading,
    files: Files,
    paging: Paging,
    dataset_id: uuid.UUID,
    level: Level | None = None,
    code: Annotated[str | None, Query(max_length=100)] = None,
) -> Any:
    """Every file left out, with its reason; duplicates, leakage, tiny classes. Pages of JSON, or all as `text/csv`."""
    folder = files.dataset(service.ready(session, dataset_id).id)
    if answers.wants_csv(request):
        rows = contents.report(folder, level=level, code=code, limit=-1)
        table = ((r.path, r.code, r.detail, r.level) for r in rows)
        return answers.csv_table(f"report-{dataset_id}", ("path", "code", "detail", "level"), table)
    rows = contents.report(folder, level=level, code=code, after=pages.after(paging, 0), limit=paging.limit + 1)
    kept, cursor = pages.numbered(rows, paging)
    return Page(items=[schemas.line(row) for row in kept], next_cursor=cursor)


@router.get(
    "/datasets/{dataset_id}/images",
    dependencies=[READ],
    response_model=Page[ImageOut],
    responses=problems(NotReady, ArtifactNotFound),
)
def images(
    session: Reading,
    files: Files,
    paging: Paging,
    dataset_id: uuid.UUID,
    split: Split | None = None,
    given_label: Annotated[str | None, Query(max_length=200, description="Name of a class")] = None,
    is_label_issue: Annotated[bool | None, Query(description="By the newest training's label ranking")] = None,
) -> Page[ImageOut]:
    """Images in index order."""
    folder = files.dataset(service.ready(session, dataset_id).id)
    classes = contents.class_names(folder)
    given, among = None, None
    if given_label is not None:
        if given_label not in classes:
            detail = "The data set has no class of this name."
            raise InvalidRequest(detail, errors=[Fault("/query/given_label", "unknown_class", detail)])
        given = classes.index(given_label)
    if is_label_issue is not None:
        ranking = label_issues.read(label_issues.newest_ranking(session, files, dataset_id))
        among = {row.number for row in ranking.where(is_label_issue)}
    after = pages.after(paging, -1)
    rows = contents.images(folder, split=split, given=given, among=among, after=after, limit=paging.limit + 1)
    kept, cursor = pages.numbered(rows, paging)
    return Page(items=[schemas.image_out(row, classes) for row in kept], next_cursor=cursor)


@router.get(
    "/datasets/{dataset_id}/images/{index}",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {"content": dict.fromkeys(contents.CONTENT_TYPES.values(), BINARY)},
        **problems(NotReady, ImageNotFound),
    },
)
def image(session: Reading, files: Files, dataset_id: uuid.UUID, index: ImageIndex) -> Response:
    """The original bytes, as they were uploaded."""
    folder = files.dataset(service.ready(session, dataset_id).id)
    row = contents.image(folder, index)
    return picture(contents.original(folder, row), row.content_type, f"{index}.{row.format.lower()}", row.sha256)


@router.get(
    "/datasets/{dataset_id}/images/{index}/thumbnail",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"content": {"image/png": BINARY}}, **problems(NotReady, ImageNotFound)},
)
def thumbnail(session: Reading, files: Files, dataset_id: uuid.UUID, index: ImageIndex) -> Response:
    """The image as a network sees it."""
    folder = files.dataset(service.ready(session, dataset_id).id)
    row = contents.image(folder, index)
    return picture(contents.thumbnail(folder, row), "image/png", f"{index}.png", "t" + row.sha256)


def picture(data: bytes, media_type: str, filename: str, tag: str) -> Response:
    """Never rendered as a page of ours (SEC6); images of a data set never change."""
    headers = {
        "ETag": f'"{tag[:33]}"',
        "Cache-Control": "private, max-age=86400, immutable",
        "Content-Disposition": f'attachment; filename="{filename}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    return Response(data, 200, headers, media_type)


@router.get(
    "/datasets/{dataset_id}/labels",
    dependencies=[READ],
    response_model=Page[LabelVersion],
    responses=problems(NotReady),
)
def labels(session: Reading, paging: Paging, dataset_id: uuid.UUID) -> Page[LabelVersion]:
    """Versions of the labels, newest first. The images never change."""
    row = service.ready(session, dataset_id)
    uploaded = LabelVersion(version=1, source="upload", edits=0, created_at=row.finished_at or row.created_at)
    items, cursor = pages.sliced([uploaded], paging)
    return Page(items=items, next_cursor=cursor)
