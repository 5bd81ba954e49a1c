"""/models and /aliases: published models, and names that point at them."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import BackgroundTasks, Path, Query, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request

from app import storage
from app.db import audit
from app.db.tables import Alias, Model
from app.errors import (
    AliasNotFound,
    ArtifactNotFound,
    Fault,
    InUse,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    RangeNotSatisfiable,
)
from app.http import files as file_responses
from app.http import pages
from app.http.access import READ, TRAIN, By
from app.http.deps import Files, ReadSession, Transaction
from app.http.openapi import BINARY, problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.models import following, service
from app.models.schemas import AliasName, AliasOut, ModelOut, Pin, alias_out, model_out

router = Router(tags=["models"])
Name = Annotated[AliasName, Path(description="Lower case, digits, dot, dash, underscore")]


@router.get("/models", dependencies=[READ], response_model=Page[ModelOut])
def list_(
    session: ReadSession,
    paging: Paging,
    method: Annotated[str | None, Query(max_length=100)] = None,
    dataset_id: uuid.UUID | None = None,
) -> Page[ModelOut]:
    """Published models, newest first."""
    statement = select(Model)
    if method is not None:
        statement = statement.where(Model.method == method)
    if dataset_id is not None:
        statement = statement.where(Model.dataset_id == dataset_id)
    rows, cursor = pages.newest_page(session, statement, Model, paging)
    aliases = service.aliases_of(session, rows)
    return Page(items=[model_out(row, aliases[row.id]) for row in rows], next_cursor=cursor)


@router.get("/models/{model_id}", dependencies=[READ], response_model=ModelOut)
def get(session: ReadSession, model_id: uuid.UUID) -> ModelOut:
    model = service.get(session, model_id)
    return model_out(model, service.aliases_of(session, [model])[model.id])


@router.get(
    "/models/{model_id}/export",
    dependencies=[READ],
    response_class=Response,
    responses={
        200: {"content": {"application/zip": BINARY}},
        206: {"description": "The requested range", "content": {"application/zip": BINARY}},
        **problems(RangeNotSatisfiable, ModelNotFound, ArtifactNotFound),
    },
)
def export(
    request: Request,
    session: ReadSession,
    files: Files,
    model_id: uuid.UUID,
    format: Annotated[Literal["bundle"], Query(description="bundle: a zip of safetensors and a manifest")] = "bundle",
) -> Response:
    """The model as one zip, for use elsewhere: `weights.safetensors` under the names of the published architecture,
    which torchvision or timm opens, `manifest.json` with classes, normalisation and how to open it, and a README.

    It contains no training image, and is available as long as the model exists, even if its job was deleted.
    """
    service.get(session, model_id)
    file = files.find_model_file(model_id, storage.EXPORT)
    if file is None:
        raise ArtifactNotFound("This model has no export; `python -m ml export` makes one from its folder.")
    return file_responses.download(request, file.fetch(), f"model-{model_id}.zip")


@router.delete("/models/{model_id}", status_code=204, dependencies=[TRAIN], responses=problems(InUse))
def delete(
    request: Request, session: Transaction, by: By, files: Files, background: BackgroundTasks, model_id: uuid.UUID
) -> None:
    """Delete a model and its files; 409 while an alias pins it or a job scores with it."""
    model = service.remove(session, model_id)
    detail = {"name": model.name, "digest": model.digest, "job_id": model.job_id and str(model.job_id)}
    audit.record(session, by, "model.delete", f"/models/{model_id}", **detail)
    background.add_task(request.app.state.model_registry.clear)
    background.add_task(files.remove, files.model(model_id))


@router.get("/aliases", dependencies=[READ], response_model=Page[AliasOut])
def aliases(session: ReadSession, paging: Paging) -> Page[AliasOut]:
    """Every alias; `default` exists as soon as there is a model."""
    statement = select(Alias, Model).join(Model, Model.id == Alias.model_id).order_by(Alias.name)
    listed: list[tuple[Alias | None, Model]] = [(row, model) for row, model in session.execute(statement)]
    if all(row is None or row.name != service.DEFAULT for row, _ in listed):
        follows = following.present_model(session)
        listed[:0] = [] if follows is None else [(None, follows)]
    page, cursor = pages.slice_page(listed, paging)
    changes = service.histories(session, [row.name for row, _ in page if row is not None])
    items = [
        _unpinned(session, model) if row is None else alias_out(row.name, model, row, changes[row.name])
        for row, model in page
    ]
    return Page(items=items, next_cursor=cursor)


@router.get("/aliases/{alias}", dependencies=[READ], response_model=AliasOut)
def get_alias(session: ReadSession, alias: Name) -> AliasOut:
    """The model behind an alias; for `default`, while it is not pinned, also why."""
    row, model = session.get(Alias, alias), service.resolve_alias(session, alias)
    return _unpinned(session, model) if row is None else _pinned(session, row, model)


def _pinned(session: Session, row: Alias, model: Model) -> AliasOut:
    return alias_out(row.name, model, row, service.histories(session, [row.name])[row.name])


def _unpinned(session: Session, model: Model) -> AliasOut:
    """`default` while nobody has set it."""
    changes = service.histories(session, [service.DEFAULT])[service.DEFAULT]
    return alias_out(service.DEFAULT, model, None, changes, following.passed_over(session, model))


@router.put(
    "/aliases/{alias}",
    dependencies=[TRAIN],
    response_model=AliasOut,
    responses={201: {"model": AliasOut}, **problems(NotReady, ModelNotFound)},
)
def put_alias(
    request: Request,
    session: Transaction,
    by: By,
    response: Response,
    background: BackgroundTasks,
    alias: Name,
    body: Pin,
) -> AliasOut:
    """Point an alias at a model (201 when it is new), or with `rollback` at the one before."""
    if body.rollback == (body.model_id is not None):
        detail = "Give either model_id or rollback."
        raise InvalidRequest(detail, errors=[Fault("/model_id", "either_or", detail)])
    background.add_task(request.app.state.model_registry.clear)
    if body.model_id is None:
        row = service.roll_back(session, alias)
    else:
        row, fresh = service.pin(session, alias, body.model_id)
        response.status_code = 201 if fresh else 200
    audit.record(
        session, by, "alias.move", f"/aliases/{alias}", model_id=str(row.model_id), rollback=body.model_id is None
    )
    return _pinned(session, row, service.get(session, row.model_id))


@router.delete("/aliases/{alias}", status_code=204, dependencies=[TRAIN], responses=problems(AliasNotFound))
def delete_alias(request: Request, session: Transaction, by: By, background: BackgroundTasks, alias: Name) -> None:
    """Remove an alias; its history stays, and `default` follows what is published again."""
    service.unpin(session, alias)
    audit.record(session, by, "alias.delete", f"/aliases/{alias}")
    background.add_task(request.app.state.model_registry.clear)
