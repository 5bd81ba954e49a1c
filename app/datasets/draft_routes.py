"""/datasets/{id}/labels/draft: a caller's edits that are not a version yet - read, add, undo, discard, publish."""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from typing import Annotated, Any

from fastapi import Header, Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.datasets import label_drafts, label_edits, label_routes, label_service, service
from app.datasets.label_edits import LabelAcceptance, LabelConsensus, LabelEdits
from app.datasets.label_issues import ImageAction
from app.datasets.label_service import Proposal
from app.db import session as db
from app.db.tables import LabelDraft, LabelDraftEdit
from app.errors import (
    ArtifactNotFound,
    Fault,
    InsufficientStorage,
    InvalidRequest,
    LabelsMovedOn,
    NotReady,
    PreconditionFailed,
)
from app.http import bodies, pages
from app.http.access import READ, TRAIN, Caller
from app.http.deps import Files, ReadSession, Transaction
from app.http.idempotency import Idempotency, StoredResponse, request_hash, respond_once
from app.http.openapi import problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.storage import Storage
from ml.formats import label_versions
from ml.formats.label_versions import Edit

router = Router(tags=["labels"])
PATH = "/datasets/{dataset_id}/labels/draft"
IfMatch = Annotated[
    str | None,
    Header(max_length=200, description='The draft\'s ETag, such as "84"; with another one nothing is changed (412)'),
]


class DraftEditOut(BaseModel):
    sequence: int
    image: int
    action: ImageAction = Field(description="What the edit does with the image")
    from_: str | None = Field(serialization_alias="from")
    to: str | None


class DraftSummary(BaseModel):
    """A draft of edits."""

    sequence: int = Field(description="Number of the last change, 0 without one; also the ETag")
    label_version: int = Field(description="The newest version when the draft was begun")
    images: int = Field(description="How many images the draft edits")
    counts: dict[str, int] = Field(description="Images by their last edit")
    updated_at: datetime | None


class Draft(Page[DraftEditOut], DraftSummary):
    """A draft with the last edit of each image, in the order in which they were made."""


class UndoneEdit(BaseModel):
    image: int
    now: DraftEditOut | None = Field(description="The edit of this image that counts now; null if none is left")


class UndoneStep(DraftSummary):
    """A draft after its last step was undone."""

    undone: list[UndoneEdit]


@router.get(PATH, dependencies=[READ], response_model=Draft, responses=problems(NotReady))
def get(session: ReadSession, caller: Caller, paging: Paging, dataset_id: uuid.UUID, response: Response) -> Draft:
    """The caller's draft of label edits. Every key has its own; it stays until it is published or discarded."""
    dataset = service.get_ready(session, dataset_id)
    draft = label_drafts.find(session, dataset_id, caller.id) or label_drafts.begin(dataset, caller.id)
    after = pages.page_start(paging, 0)
    statement = label_drafts.select_current(draft).where(LabelDraftEdit.sequence > after).limit(paging.limit + 1)
    page, cursor = pages.cut_page(session.scalars(statement).all(), paging, lambda row: [row.sequence])
    return Draft(items=[edit_out(row) for row in page], next_cursor=cursor, **summary(session, draft))


@router.post(
    PATH,
    dependencies=[TRAIN],
    response_model=DraftSummary,
    openapi_extra={"requestBody": label_routes.edits_body(LabelEdits, LabelAcceptance)},
    responses=problems(LabelsMovedOn, PreconditionFailed, ArtifactNotFound),
)
async def append(
    request: Request, dataset_id: uuid.UUID, idempotency: Idempotency, if_match: IfMatch = None
) -> Response:
    """Add edits to the draft, as one step that can be undone: `edits` of images, or flags of a job to accept.

    `from` must be the label in the newest version. Of several edits of one image the last counts. `parent` and `note`
    are ignored: give the note when you publish the draft.
    """
    bodies.allow(request.scope, label_edits.MAX_BYTES)
    data = await request.body()
    media_type = bodies.media_type(request)
    state, owner = request.app.state, request.state.principal.id

    def apply() -> Response:
        body = label_edits.parse(data, media_type, parent=None, note="")
        if isinstance(body, LabelConsensus):
            detail = "A consensus is a version of its own: POST it to /datasets/{id}/labels."
            raise InvalidRequest(detail, errors=[Fault("/consensus", "not_in_a_draft", detail)])
        with db.transaction(state.engine) as session:

            def create() -> StoredResponse:
                dataset, draft = label_drafts.lock(session, dataset_id, owner, if_match)
                if isinstance(body, LabelEdits):
                    edits = [edit.edit() for edit in body.edits]
                else:
                    accepted = label_service.propose_acceptance(
                        session, state.storage, dataset_id, body.accept, parent=None, if_match=None, lock=False
                    )
                    edits = list(accepted.edits)
                if edits:
                    label_drafts.append(session, state.storage, dataset, draft, edits)
                return stored(DraftSummary(**summary(session, draft)))

            hashed = request_hash(str(dataset_id), hashlib.sha256(data).hexdigest(), media_type)
            return respond_once(session, idempotency, hashed, create)

    return await run_in_threadpool(apply)


@router.post(
    f"{PATH}/undo", dependencies=[TRAIN], response_model=UndoneStep, responses=problems(NotReady, PreconditionFailed)
)
def undo(session: Transaction, caller: Caller, dataset_id: uuid.UUID, if_match: IfMatch = None) -> Response:
    """Undo the last step: all edits that were sent in one request. Without a step nothing is changed."""
    _, draft = label_drafts.lock(session, dataset_id, caller.id, if_match)
    undone = [
        UndoneEdit(image=image, now=None if now is None else edit_out(now))
        for image, now in label_drafts.undo(session, draft).items()
    ]
    return stored(UndoneStep(undone=undone, **summary(session, draft))).response()


@router.delete(PATH, status_code=204, dependencies=[TRAIN], responses=problems(NotReady, PreconditionFailed))
def discard(session: Transaction, caller: Caller, dataset_id: uuid.UUID, if_match: IfMatch = None) -> None:
    """Discard the draft with all its edits."""
    _, draft = label_drafts.lock(session, dataset_id, caller.id, if_match)
    session.delete(draft)


@router.post(
    f"{PATH}/publish",
    status_code=201,
    dependencies=[TRAIN],
    response_model=label_routes.LabelVersionOut,
    responses=problems(NotReady, LabelsMovedOn, PreconditionFailed, InsufficientStorage),
)
def publish(
    request: Request,
    session: Transaction,
    files: Files,
    caller: Caller,
    dataset_id: uuid.UUID,
    idempotency: Idempotency,
    if_match: IfMatch = None,
    note: Annotated[str, Query(max_length=2000, description="Why; shown with the version")] = "",
    leave_out_moved_on: Annotated[
        bool, Query(description="Leave out edits of images whose label has changed since, instead of a 409")
    ] = False,
) -> Response:
    """Make the draft a new label version, with the checks of `POST /datasets/{id}/labels`, and empty it."""

    def create() -> StoredResponse:
        files.require(request.app.state.settings.min_free_bytes)
        _, draft = label_drafts.lock(session, dataset_id, caller.id, if_match)
        rows = session.scalars(label_drafts.select_current(draft))
        edits = [Edit(row.action, row.image, row.old, row.new) for row in rows]
        if not edits:
            detail = "The draft has no edits."
            raise InvalidRequest(detail, errors=[Fault("", "nothing_to_change", detail)])
        proposal = propose(session, files, dataset_id, edits, leave_out_moved_on=leave_out_moved_on)
        session.delete(draft)
        return label_routes.write(session, request, proposal, note)

    return respond_once(session, idempotency, request_hash(str(dataset_id), note, leave_out_moved_on), create)


def propose(
    session: Session, files: Storage, dataset_id: uuid.UUID, edits: list[Edit], *, leave_out_moved_on: bool
) -> Proposal:
    """The labels that the edits of a draft make; see `label_service.propose_edits` for errors."""

    def of(some: list[Edit]) -> Proposal:
        return label_service.propose_edits(session, files, dataset_id, some, parent=None, if_match=None, lock=True)

    try:
        return of(edits)
    except LabelsMovedOn as error:
        if not leave_out_moved_on:
            raise
        moved = {int(fault.pointer.rpartition("/")[2]) for fault in error.errors}
        left = [edit for number, edit in enumerate(edits) if number not in moved]
        if not left:
            raise
        return of(left)._replace(skipped={"relabelled since": len(moved)})


def summary(session: Session, draft: LabelDraft) -> dict[str, Any]:
    """The fields of `DraftSummary`."""
    counts = label_drafts.count(session, draft)
    return {
        "sequence": draft.sequence,
        "label_version": draft.label_version,
        "images": sum(counts),
        "counts": counts._asdict(),
        "updated_at": draft.updated_at,
    }


def edit_out(row: LabelDraftEdit) -> DraftEditOut:
    """The representation of an edit."""
    action = label_versions.STATUS_OF[row.action]
    return DraftEditOut(sequence=row.sequence, image=row.image, action=action, from_=row.old, to=row.new)


def stored(out: DraftSummary) -> StoredResponse:
    """The response that shows a draft."""
    return StoredResponse(200, {"ETag": f'"{out.sequence}"'}, out.model_dump(mode="json", by_alias=True))
