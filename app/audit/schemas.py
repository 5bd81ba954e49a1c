"""Representation of the audit table."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.db.audit import Action


class AuditEntryOut(BaseModel):
    id: int = Field(description="Later entries have larger ones")
    created_at: datetime
    actor: str = Field(
        description="Name of the API key, or name and subject of the person who was logged in; `admin` for the admin "
        "key, `loopback` without keys, `retention` for what the service deletes by its settings"
    )
    key_id: uuid.UUID | None = Field(description="Id of the API key or person, where one of `/keys` acted")
    action: Action
    object: str = Field(description="Path of the resource")
    request_id: str | None = Field(description="Of the request, as in its response and in the logs")
    detail: dict[str, Any] = Field(description="More about it, by action")
