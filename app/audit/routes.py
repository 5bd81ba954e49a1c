"""/audit: who did what."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from app.audit import service
from app.audit.schemas import AuditEntryOut
from app.db.audit import Action
from app.http import pages
from app.http.access import ADMIN
from app.http.deps import ReadSession
from app.http.pages import Page, Paging
from app.http.routing import Router

router = Router(tags=["service"])
LARGEST = 2**53 - 1


@router.get("/audit", dependencies=[ADMIN], response_model=Page[AuditEntryOut])
def list_(
    session: ReadSession,
    paging: Paging,
    action: Action | None = None,
    actor: Annotated[
        str | None, Query(max_length=200, description="Name of an API key or a person, as entries show it")
    ] = None,
    object: Annotated[
        str | None, Query(max_length=300, description="Path of a resource: entries about it and what is below it")
    ] = None,
) -> Page[AuditEntryOut]:
    """Who created and revoked keys, logged in and out, deleted data sets, jobs and models, edited labels, moved
    aliases, installed weights and cancelled jobs; newest first. An entry is written with the act, or neither is."""
    below = pages.page_start(paging, LARGEST)
    rows = service.list_entries(session, action, actor, object, below=below, limit=paging.limit + 1)
    page, cursor = pages.cut_page(rows, paging, lambda row: [row.id])
    return Page(items=[AuditEntryOut.model_validate(row, from_attributes=True) for row in page], next_cursor=cursor)
