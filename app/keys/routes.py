"""/keys: create, list, change and revoke API keys, and the access of people who log in."""

from __future__ import annotations

import uuid

from fastapi import BackgroundTasks
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from app.db import audit
from app.db.tables import ApiKey
from app.http import access, pages
from app.http.access import ADMIN, By
from app.http.deps import ReadSession, Transaction
from app.http.pages import Page, Paging
from app.http.routing import Router
from app.keys import service
from app.keys.schemas import CreatedKey, KeyChange, KeyOut, Limits, NewKey

router = Router(tags=["keys"])


@router.post("/keys", status_code=201, dependencies=[ADMIN], response_model=CreatedKey)
def create(session: Transaction, by: By, body: NewKey, response: Response) -> CreatedKey:
    """Create a key. Only this response contains it, so an Idempotency-Key is ignored: it would store the response."""
    limits = body.model_dump(include=set(Limits.model_fields))
    row, key = service.create(session, body.name, body.scopes, body.expires_at, limits)
    known = KeyOut.model_validate(row, from_attributes=True)
    detail = known.model_dump(mode="json", include={"name", "scopes", "expires_at"})
    audit.record(session, by, "key.create", f"/keys/{row.id}", **detail)
    response.headers["Location"] = f"/keys/{row.id}"
    response.headers["Cache-Control"] = "no-store"
    return CreatedKey.model_validate({**known.model_dump(), "key": key})


@router.get("/keys", dependencies=[ADMIN], response_model=Page[KeyOut])
def list_(session: ReadSession, paging: Paging) -> Page[KeyOut]:
    """Every key, and every person who has logged in; revoked ones too, newest first."""
    rows, cursor = pages.newest_page(session, select(ApiKey), ApiKey, paging)
    return Page(items=[KeyOut.model_validate(r, from_attributes=True) for r in rows], next_cursor=cursor)


@router.get("/keys/{key_id}", dependencies=[ADMIN], response_model=KeyOut)
def get(session: ReadSession, key_id: uuid.UUID) -> KeyOut:
    return KeyOut.model_validate(service.get(session, key_id), from_attributes=True)


@router.patch("/keys/{key_id}", dependencies=[ADMIN], response_model=KeyOut)
def change(
    session: Transaction, by: By, request: Request, background: BackgroundTasks, key_id: uuid.UUID, body: KeyChange
) -> KeyOut:
    """Change limits of a key; null restores the default. At once in this process, within five seconds in others."""
    values = body.model_dump(exclude_unset=True)
    row = service.change(session, key_id, values)
    audit.record(session, by, "key.change", f"/keys/{key_id}", **values)
    background.add_task(access.clear_caches, request)
    return KeyOut.model_validate(row, from_attributes=True)


@router.delete("/keys/{key_id}", status_code=204, dependencies=[ADMIN])
def revoke(session: Transaction, by: By, request: Request, background: BackgroundTasks, key_id: uuid.UUID) -> None:
    """Revoke a key, or the access of a person: at once in this process, within five seconds in others."""
    service.revoke(session, key_id)
    audit.record(session, by, "key.revoke", f"/keys/{key_id}")
    background.add_task(access.clear_caches, request)
