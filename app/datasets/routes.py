"""/datasets: upload, list, view, delete."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import BackgroundTasks, Path, Query
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from app.datasets import contents, image_filters, label_issues, label_service, schemas, service, upload_service, uploads
from app.datasets.image_filters import Filters, LabelVersionQuery
from app.datasets.schemas import DatasetContents, DatasetOut, ImageOut, ReportLine, Status
from app.db import audit
from app.db.tables import Dataset, State
from app.errors import (
    ArchiveRejected,
    ArtifactNotFound,
    DatasetUnavailable,
    ImageNotFound,
    InsufficientStorage,
    InUse,
    JobNotFound,
    LabelVersionNotFound,
    NotReady,
    QueueFull,
    RequestInFlight,
    UploadLocked,
    UploadNotFound,
)
from app.http import bodies, pages
from app.http import files as file_responses
from app.http.access import READ, TRAIN, By
from app.http.deps import Files, ReadSession, Transaction
from app.http.idempotency import Idempotency
from app.http.openapi import BINARY, CSV, problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.storage import Storage
from ml.formats import dataset_index, image_results, records
from ml.formats.records import Level

router = Router(tags=["datasets"])
ImageIndex = Annotated[int, Path(ge=0, le=2**53)]
COLUMNS = {
    "path_column": "Column with the paths of the images; empty: file, file_name, filename, path, image_path or image",
    "label_column": (
        "Column to learn from; empty: label, class, category, target, given or choice, or the only other column"
    ),
    "clean_column": "Column of true labels; they are used only to measure",
    "annotator_columns": "Columns with the votes of one annotator each, separated by commas. Without "
    "`label_column`, or with `label_column=consensus`, the label to learn from is the majority of the votes",
}
FIELD_CHARS = {"annotator_columns": uploads.COLUMN_NAMES_CHARS}
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
                    "name": {"type": "string", "minLength": 1, "maxLength": 200},
                    **{
                        field: {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": FIELD_CHARS.get(field, 200),
                            "description": description,
                        }
                        for field, description in COLUMNS.items()
                    },
                },
            }
        },
        "application/json": {
            "schema": {
                "oneOf": [
                    {"$ref": "#/components/schemas/FinishedUpload"},
                    {"$ref": "#/components/schemas/ServerFolder"},
                ]
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
    responses=problems(
        ArchiveRejected, QueueFull, InsufficientStorage, RequestInFlight, UploadLocked, UploadNotFound, NotReady
    ),
)
async def create(
    request: Request,
    background: BackgroundTasks,
    idempotency: Idempotency,
    name: Annotated[str | None, Query(max_length=200, description="Shown in lists")] = None,
    path_column: Annotated[str | None, Query(max_length=200, description=COLUMNS["path_column"])] = None,
    label_column: Annotated[str | None, Query(max_length=200, description=COLUMNS["label_column"])] = None,
    clean_column: Annotated[str | None, Query(max_length=200, description=COLUMNS["clean_column"])] = None,
    annotator_columns: Annotated[
        str | None, Query(max_length=uploads.COLUMN_NAMES_CHARS, description=COLUMNS["annotator_columns"])
    ] = None,
) -> Response:
    """Upload an archive: `multipart/form-data` with a `file`, or the archive itself as the body; or as JSON a
    finished resumable upload (`POST /uploads`) by its `upload_id`, or a folder of the host (`server_folder`).

    Its structure is checked at once; its images are read afterwards (`status: ingesting`).

    The archive holds class folders (`cat/1.jpg`, optionally below `train/`, `val/` and `test/`) or images with a table:
    `train.csv` with `test.csv`, `labels.csv`, `metadata.csv`, `images.csv`, or the only table that fits; also `.tsv`
    and `.jsonl`. A table is UTF-8 or UTF-16, separated by commas, semicolons or tabs; case in the names of columns does
    not matter. Paths start at the folder of the table or at one above it. A row without a label is left out and
    reported; more than 10 % of such rows are refused. Where labels are numbers and a file `classes.txt` lies beside the
    table or above it, its line N + 1 is the name of class N. Where no table fits, annotations of COCO, Label Studio and
    WebDataset are read.

    A table whose columns are not clear is refused with 422; `columns` and `sample_row` of the problem hold its columns
    and its first row, to choose `path_column`, `label_column` and `clean_column` from.
    """
    query = {
        "name": name, "path_column": path_column, "label_column": label_column, "clean_column": clean_column,
        "annotator_columns": annotator_columns,
    }  # fmt: skip
    if bodies.media_type(request) == "application/json":
        response, is_new = await upload_service.accept_json(request, idempotency)
    else:
        response, is_new = await upload_service.accept_upload(request, idempotency, query)
    if is_new:
        background.add_task(request.app.state.notifier.notify, "datasets")
    return response.response(replayed=not is_new)


@router.get("/datasets", dependencies=[READ], response_model=Page[DatasetOut])
def list_(session: ReadSession, files: Files, paging: Paging, status: Status | None = None) -> Page[DatasetOut]:
    """Data sets, newest first."""
    statement = select(Dataset)
    if status is not None:
        statement = statement.where(Dataset.state.in_(service.STATES[status]))
    rows, cursor = pages.newest_page(session, statement, Dataset, paging)
    return Page(items=[schemas.dataset_out(row, read_contents(files, row)) for row in rows], next_cursor=cursor)


@router.get("/datasets/{dataset_id}", dependencies=[READ], response_model=DatasetOut)
def get(session: ReadSession, files: Files, dataset_id: uuid.UUID) -> DatasetOut:
    row = service.get(session, dataset_id)
    return schemas.dataset_out(row, read_contents(files, row))


def read_contents(files: Storage, row: Dataset) -> DatasetContents | None:
    """What the files of a data set hold; None unless it is ready."""
    if row.state != State.succeeded:
        return None
    try:
        folder = files.fetch_dataset(row.id, row.label_version)
    except DatasetUnavailable:  # a deletion may be removing it at this moment
        return None
    return schemas.read_contents(folder, row.label_version) if folder.is_dir() else None


@router.delete("/datasets/{dataset_id}", status_code=204, dependencies=[TRAIN], responses=problems(InUse))
def delete(session: Transaction, by: By, files: Files, background: BackgroundTasks, dataset_id: uuid.UUID) -> None:
    """Delete a data set and its files; 409 while a job uses it. Finished jobs and their models stay."""
    name = service.delete(session, dataset_id)
    audit.record(session, by, "dataset.delete", f"/datasets/{dataset_id}", name=name)
    background.add_task(files.remove, files.dataset(dataset_id))
    background.add_task(files.remove, files.upload(dataset_id))


@router.get(
    "/datasets/{dataset_id}/report",
    dependencies=[READ],
    response_model=Page[ReportLine],
    responses={
        200: CSV,
        **problems(NotReady, JobNotFound, ArtifactNotFound),
    },
)
def report(
    request: Request,
    session: ReadSession,
    files: Files,
    paging: Paging,
    dataset_id: uuid.UUID,
    level: Level | None = None,
    code: Annotated[str | None, Query(max_length=100)] = None,
    job: Annotated[
        uuid.UUID | None, Query(description="The report of this job instead: near-duplicates, outliers")
    ] = None,
) -> Any:
    """Every file left out, with the reason; duplicates, leakage, tiny classes. A page as JSON, or all lines as CSV."""
    folder = files.fetch_dataset(service.get_ready(session, dataset_id).id)
    read: Callable[..., list[records.ReportLine]] = functools.partial(dataset_index.read_report, folder)
    if job is not None:
        read = functools.partial(image_results.read_report, label_issues.results_of(session, files, job, dataset_id))
    if file_responses.wants_csv(request):
        lines = read(level=level, code=code)
        table = ((line.path, line.code, line.detail, line.level) for line in lines)
        return file_responses.csv_table(f"report-{dataset_id}", ("path", "code", "detail", "level"), table)
    after = pages.page_start(paging, 0)
    lines = read(level=level, code=code, after=after, limit=paging.limit + 1)
    page, cursor = pages.cut_page(lines, paging, lambda line: [line.number])
    return Page(items=[schemas.report_line(line) for line in page], next_cursor=cursor)


@router.get(
    "/datasets/{dataset_id}/images",
    dependencies=[READ],
    response_model=Page[ImageOut],
    responses=problems(NotReady, ArtifactNotFound, JobNotFound, LabelVersionNotFound),
)
def images(
    session: ReadSession,
    files: Files,
    paging: Paging,
    dataset_id: uuid.UUID,
    filters: Filters,
    job: Annotated[
        uuid.UUID | None,
        Query(
            description="Job whose results are used; by default the newest training if a filter or the order needs one"
        ),
    ] = None,
    version: LabelVersionQuery = None,
) -> Page[ImageOut]:
    """Images in index order, or as `order_by` says; with `job` also that job's findings."""
    dataset = service.get_ready(session, dataset_id)
    labels = label_service.resolve_version(session, dataset, version)
    folder = files.fetch_dataset(dataset.id, labels)
    query = filters.query(default_order="index")
    results = None
    if job is not None:
        results = label_issues.results_of(session, files, job, dataset.id)
    elif query.needs_results:
        results = label_issues.newest_results(session, files, dataset_id)
    classes, predictions = image_filters.class_names(folder, labels, results)
    image_filters.check_classes(filters, classes, predictions)
    page, cursor = image_filters.page(folder, query, paging, version=labels, results=results)
    return Page(items=[schemas.image_out(match, classes, predictions) for match in page], next_cursor=cursor)


@router.get(
    "/datasets/{dataset_id}/images/{index}",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {"content": dict.fromkeys(contents.CONTENT_TYPES.values(), BINARY)},
        **problems(NotReady, ImageNotFound, DatasetUnavailable),
    },
)
def image(session: ReadSession, files: Files, dataset_id: uuid.UUID, index: ImageIndex) -> Response:
    """The original bytes, as they were uploaded."""
    service.get_ready(session, dataset_id)
    record = contents.find_image(files.fetch_dataset(dataset_id), index)
    original = contents.original(files, dataset_id, record)
    media_type = contents.CONTENT_TYPES[record.format]
    return image_response(original, media_type, f"{index}.{record.format.lower()}", record.sha256)


@router.get(
    "/datasets/{dataset_id}/images/{index}/thumbnail",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"content": {"image/png": BINARY}}, **problems(NotReady, ImageNotFound, DatasetUnavailable)},
)
def thumbnail(session: ReadSession, files: Files, dataset_id: uuid.UUID, index: ImageIndex) -> Response:
    """The image as a network sees it."""
    service.get_ready(session, dataset_id)
    record = contents.find_image(files.fetch_dataset(dataset_id), index)
    picture = contents.thumbnail(files, dataset_id, record)
    return image_response(picture, "image/png", f"{index}.png", "t" + record.sha256)


def image_response(data: bytes, media_type: str, filename: str, tag: str) -> Response:
    """A response with an image, which a browser never renders as a page of this service (SEC6).

    Args:
        data: The encoded image; images of a data set never change.
        media_type: Its media type.
        filename: The name under which a browser saves it.
        tag: Differs between images, for the ETag; hexadecimal digits of a hash, after a letter for a thumbnail.
    """
    headers = {
        "ETag": f'"{tag[:33]}"',
        "Cache-Control": "private, max-age=86400, immutable",
        "Content-Disposition": f'attachment; filename="{filename}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    return Response(data, 200, headers, media_type)
