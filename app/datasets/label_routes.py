"""/datasets/{id}/labels: versions of the labels - list, read, compare, edit, accept a job's flags, revert."""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Header, Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.datasets import image_filters, label_edits, label_service, service
from app.datasets.label_edits import LabelAcceptance, LabelChangeBody, LabelConsensus, LabelEdits
from app.datasets.label_issues import ImageAction
from app.datasets.label_service import Proposal
from app.db import audit
from app.db import session as db
from app.db.tables import Dataset, LabelVersion
from app.errors import (
    ArtifactNotFound,
    InsufficientStorage,
    LabelsMovedOn,
    LabelVersionNotFound,
    NotReady,
    PreconditionFailed,
)
from app.http import bodies, pages
from app.http import files as file_responses
from app.http.access import READ, TRAIN, actor_of
from app.http.deps import Files, ReadSession, Transaction
from app.http.fields import VersionNumber
from app.http.idempotency import Idempotency, StoredResponse, request_hash, respond_once
from app.http.openapi import CSV, problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.storage import Storage
from ml.formats import dataset_index, label_versions
from ml.formats.dataset_index import LabelChange
from ml.formats.image_query import ImageQuery
from ml.formats.records import ImageRecord, Split

router = Router(tags=["labels"])
Source = Literal["upload", "edits", "accept", "consensus", "revert"]
IfMatch = Annotated[
    str | None,
    Header(
        max_length=200,
        description='The ETag of the newest version, such as "3"; with another one nothing is changed (412)',
    ),
]
SAMPLE = 20  # edits that a preview shows


def edits_body(*kinds: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body of edits, which JSON may be of several kinds."""
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"oneOf": [{"$ref": f"#/components/schemas/{k.__name__}"} for k in kinds]}},
            label_edits.NDJSON: {"schema": {"type": "string", "description": "One edit a line"}},
            label_edits.CSV: {"schema": {"type": "string", "description": f"Columns {', '.join(label_edits.COLUMNS)}"}},
        },
    }


class LabelVersionOut(BaseModel):
    version: int
    parent: int | None
    source: Source = Field(description="Where these labels came from")
    origin: dict[str, Any] | None = Field(
        description="What was accepted, the rule of the consensus, or the version reverted to"
    )
    author: str | None = Field(description="Name of the API key")
    note: str
    edits: int = Field(description="How many edits made it of the version before")
    counts: dict[Literal["relabelled", "confirmed", "excluded"], int] = Field(
        description="Images by action, over all versions"
    )
    digest: str = Field(description="Hash of all labels and actions")
    skipped: dict[str, int] | None = Field(default=None, description="Flags or votes that were not taken, by reason")
    created_at: datetime


class EditOut(BaseModel):
    action: str
    image: int | None
    from_: str | None = Field(serialization_alias="from")
    to: str | None


class LabelPreview(BaseModel):
    """The response to a dry run."""

    edits: int
    skipped: dict[str, int] = Field(description="Flags or votes that would not be taken, by reason")
    counts: dict[str, int] = Field(description="Images by action, over all versions, with these edits")
    sample: list[EditOut] = Field(description=f"The first {SAMPLE} edits")


class ImageLabelOut(BaseModel):
    index: int
    path: str
    split: Split
    label: str | None
    action: ImageAction


class ImageLabelPage(Page[ImageLabelOut]):
    """Labels of a version."""

    version: LabelVersionOut
    classes: list[str]


class ImageLabelChange(BaseModel):
    index: int
    path: str
    from_: str | None = Field(serialization_alias="from")
    to: str | None
    action_before: ImageAction
    action: ImageAction


class LabelDiff(Page[ImageLabelChange]):
    """What differs between two versions."""

    classes_added: list[str]
    classes_removed: list[str]


@router.get(
    "/datasets/{dataset_id}/labels",
    dependencies=[READ],
    response_model=Page[LabelVersionOut],
    responses=problems(NotReady),
)
def list_(session: ReadSession, files: Files, paging: Paging, dataset_id: uuid.UUID) -> Page[LabelVersionOut]:
    """Versions of the labels, newest first. Old ones may be deleted (`DENLL_RETAIN_LABEL_VERSIONS_S`)."""
    dataset = service.get_ready(session, dataset_id)
    below = pages.page_start(paging, dataset.label_version + 1)
    rows = label_service.list_versions(session, dataset.id, below=below, limit=paging.limit)
    items = [version_out(row) for row in rows]
    if len(items) < paging.limit and below > 1:
        items.append(uploaded_out(files, dataset))
    more = items and items[-1].version > 1
    return Page(items=items, next_cursor=pages.encode([items[-1].version]) if more else None)


@router.post(
    "/datasets/{dataset_id}/labels",
    status_code=201,
    dependencies=[TRAIN],
    response_model=LabelVersionOut,
    openapi_extra={"requestBody": edits_body(LabelEdits, LabelAcceptance, LabelConsensus)},
    responses={
        200: {"model": LabelPreview},
        **problems(LabelVersionNotFound, LabelsMovedOn, PreconditionFailed, InsufficientStorage, ArtifactNotFound),
    },
)
async def edit(
    request: Request,
    dataset_id: uuid.UUID,
    idempotency: Idempotency,
    if_match: IfMatch = None,
    dry_run: Annotated[bool, Query(description="Only check, and count what would change")] = False,
    parent: Annotated[VersionNumber | None, Query(description="`parent` of edits that are not JSON")] = None,
    note: Annotated[str, Query(max_length=2000, description="`note` of edits that are not JSON")] = "",
) -> Response:
    """Make a new version of the labels: by `edits`, by accepting the flags of a job, or by what annotators agree on.

    Either all edits apply or none. The `from` of each must be the label that the image has in the newest version; a
    409 lists the images that have another one. Excluded images leave training; confirmed labels are not flagged again.
    """
    bodies.allow(request.scope, label_edits.MAX_BYTES)
    data = await request.body()
    media_type = bodies.media_type(request)
    state = request.app.state

    def apply() -> Response:
        body = label_edits.parse(data, media_type, parent=parent, note=note)
        with db.transaction(state.engine, read_only=dry_run) as session:
            if dry_run:
                return JSONResponse(preview(propose(session, state.storage, dataset_id, body, if_match, lock=False)))

            def create() -> StoredResponse:
                state.storage.require(state.settings.min_free_bytes)
                proposal = propose(session, state.storage, dataset_id, body, if_match, lock=True)
                return write(session, request, proposal, body.note)

            hashed = request_hash(str(dataset_id), hashlib.sha256(data).hexdigest(), media_type, parent, note)
            return respond_once(session, idempotency, hashed, create)

    return await run_in_threadpool(apply)


@router.get(
    "/datasets/{dataset_id}/labels/diff",
    dependencies=[READ],
    response_model=LabelDiff,
    responses={200: CSV, **problems(LabelVersionNotFound, NotReady)},
)
def diff(
    request: Request,
    session: ReadSession,
    files: Files,
    paging: Paging,
    dataset_id: uuid.UUID,
    before: Annotated[VersionNumber, Query(alias="from")],
    after: Annotated[VersionNumber, Query(alias="to")],
) -> Any:
    """Images whose label or action differs between two versions, in index order: a page as JSON, all of them as CSV."""
    dataset = service.get_ready(session, dataset_id)
    for version in (before, after):
        label_service.check_version(session, dataset, version)
    folder = files.fetch_dataset(dataset.id, before, after)
    if file_responses.wants_csv(request):
        header = ("index", "path", "from", "to", "action_before", "action")
        rows = dataset_index.compare_labels(folder, before, after)
        return file_responses.csv_table(f"labels-{dataset_id}-{before}-{after}", header, rows)
    start = pages.page_start(paging, -1)
    changes = dataset_index.compare_labels(folder, before, after, start=start, limit=paging.limit + 1)
    page, cursor = pages.cut_page(changes, paging, lambda change: [change.number])
    one, two = (set(dataset_index.read_classes(folder, version)) for version in (before, after))
    return LabelDiff(
        items=[change_out(change) for change in page],
        next_cursor=cursor,
        classes_added=sorted(two - one),
        classes_removed=sorted(one - two),
    )


@router.get(
    "/datasets/{dataset_id}/labels/{version}",
    dependencies=[READ],
    response_model=ImageLabelPage,
    responses={200: CSV, **problems(LabelVersionNotFound, NotReady)},
)
def get(
    request: Request,
    session: ReadSession,
    files: Files,
    paging: Paging,
    dataset_id: uuid.UUID,
    version: VersionNumber,
    split: Split | None = None,
    action: Annotated[list[ImageAction] | None, Query(description="Only these; repeat it for several")] = None,
) -> Any:
    """Labels of a version in index order: a page as JSON, all of them as CSV."""
    dataset = service.get_ready(session, dataset_id)
    label_service.check_version(session, dataset, version)
    folder = files.fetch_dataset(dataset.id, version)
    classes = dataset_index.read_classes(folder, version)
    if file_responses.wants_csv(request):
        images = dataset_index.read_images(folder, split=split, status=action, version=version)
        header = ("index", "path", "split", "label", "action")
        rows = (tuple(label_out(image, classes).model_dump().values()) for image in images)
        return file_responses.csv_table(f"labels-{dataset_id}-{version}", header, rows)
    query = ImageQuery(split=split, status=action)
    page, cursor = image_filters.page(folder, query, paging, version=version)
    return ImageLabelPage(
        items=[label_out(match.image, classes) for match in page],
        next_cursor=cursor,
        version=version_detail(session, files, dataset, version),
        classes=classes,
    )


@router.post(
    "/datasets/{dataset_id}/labels/{version}/revert",
    status_code=201,
    dependencies=[TRAIN],
    response_model=LabelVersionOut,
    responses=problems(LabelVersionNotFound, NotReady, PreconditionFailed, InsufficientStorage),
)
def revert(
    request: Request,
    session: Transaction,
    files: Files,
    dataset_id: uuid.UUID,
    version: VersionNumber,
    idempotency: Idempotency,
    if_match: IfMatch = None,
    note: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """Make a new version with the labels of an earlier one."""

    def create() -> StoredResponse:
        files.require(request.app.state.settings.min_free_bytes)
        proposal = label_service.propose_revert(session, files, dataset_id, version, if_match=if_match)
        return write(session, request, proposal, note)

    return respond_once(session, idempotency, request_hash(str(dataset_id), version, note), create)


def propose(
    session: Session,
    files: Storage,
    dataset_id: uuid.UUID,
    body: LabelChangeBody,
    if_match: str | None,
    *,
    lock: bool,
) -> Proposal:
    """The labels that a body makes; see `label_service.propose_edits` for arguments and errors."""
    if isinstance(body, LabelEdits):
        edits = [edit.edit() for edit in body.edits]
        return label_service.propose_edits(
            session, files, dataset_id, edits, parent=body.parent, if_match=if_match, lock=lock
        )
    if isinstance(body, LabelConsensus):
        return label_service.propose_consensus(
            session, files, dataset_id, body.consensus, parent=body.parent, if_match=if_match, lock=lock
        )
    return label_service.propose_acceptance(
        session, files, dataset_id, body.accept, parent=body.parent, if_match=if_match, lock=lock
    )


def write(session: Session, request: Request, proposal: Proposal, note: str) -> StoredResponse:
    """Write the version, and the response that shows it."""
    author = request.state.principal.name or None
    row = label_service.write(session, request.app.state.storage, proposal, author=author, note=note)
    location = f"/datasets/{row.dataset_id}/labels/{row.version}"
    audit.record(
        session, actor_of(request), "labels.edit", location, source=row.source, edits=row.edits, note=note[:200]
    )
    out = version_out(row).model_copy(update={"skipped": dict(proposal.skipped) or None})
    headers = {"Location": location, "ETag": f'"{row.version}"'}
    return StoredResponse(201, headers, out.model_dump(mode="json"))


def preview(proposal: Proposal) -> dict[str, Any]:
    """The representation of a proposal that is not written."""
    sample = [EditOut(action=e.action, image=e.image, from_=e.old, to=e.new) for e in proposal.edits[:SAMPLE]]
    return LabelPreview(
        edits=len(proposal.edits),
        skipped=dict(proposal.skipped),
        counts=label_service.count_statuses(proposal.labels),
        sample=sample,
    ).model_dump(mode="json", by_alias=True)


def version_detail(session: Session, files: Storage, dataset: Dataset, version: int) -> LabelVersionOut:
    """The representation of one version; it must exist."""
    if version == label_versions.UPLOADED:
        return uploaded_out(files, dataset)
    (row,) = label_service.list_versions(session, dataset.id, below=version + 1, limit=1)
    return version_out(row)


def version_out(row: LabelVersion) -> LabelVersionOut:
    """The representation of a version that edits have made."""
    fields = ("version", "parent", "source", "origin", "author", "note", "edits", "counts", "digest", "created_at")
    return LabelVersionOut.model_validate({name: getattr(row, name) for name in fields})


def uploaded_out(files: Storage, dataset: Dataset) -> LabelVersionOut:
    """The representation of the uploaded labels."""
    return LabelVersionOut(
        version=label_versions.UPLOADED,
        parent=None,
        source="upload",
        origin=None,
        author=None,
        note="",
        edits=0,
        counts={"relabelled": 0, "confirmed": 0, "excluded": 0},
        digest=label_service.uploaded_digest(files.fetch_dataset(dataset.id)),
        created_at=dataset.finished_at or dataset.created_at,
    )


def label_out(image: ImageRecord, classes: list[str]) -> ImageLabelOut:
    """The representation of an image's label."""
    label = None if image.given is None else classes[image.given]
    return ImageLabelOut.model_validate(
        {"index": image.number, "path": image.path, "split": image.split, "label": label, "action": image.status}
    )


def change_out(change: LabelChange) -> ImageLabelChange:
    """The representation of a change."""
    return ImageLabelChange.model_validate(
        {
            "index": change.number,
            "path": change.path,
            "from_": change.label_before,
            "to": change.label_after,
            "action_before": change.status_before,
            "action": change.status_after,
        }
    )
