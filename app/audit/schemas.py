"""Representation of the audit table."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.db.audit import Action


class AuditEntryOut(BaseModel):
    id: int = Field(description="Grows with every entry")
    created_at: datetime
    actor: str = Field(
        description="Name of the API key, or name and subject of the person who was logged in; `admin` for the admin "
        "key, `loopback` without keys, `retention` for what the service deletes by its settings"
    )
    key_id: uuid.UUID | None = Field(description="Id of the API key or person under `/keys`; null for others")
    action: Action
    object: str = Field(description="Path of the resource")
    request_id: str | None = Field(description="Id of the request, as in its response and in the logs")
    detail: dict[str, Any] = Field(description="Details, which depend on the action")
