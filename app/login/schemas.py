"""Representation of the session that a browser has."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import BaseModel, Field

from app.setting_types import Scope


class SessionOut(BaseModel):
    person_id: uuid.UUID = Field(description="The id under `/keys`, where an admin sees and limits this person")
    name: str = Field(description="As the provider names the person")
    subject: str = Field(description="Id of the person at the provider")
    scopes: list[Scope] = Field(description="What this session may do")
    created_at: datetime
    expires_at: datetime = Field(description="When the session ends, unless the provider confirms it before")
    csrf_token: str = Field(description="Send it as X-CSRF-Token with every request that changes something")
