"""Representations of API keys. The key itself is in the response that creates it and in no other."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from app.http.access import Scope
from app.http.fields import Name, Strict


class NewKey(Strict):
    name: Name = Field(description="What the key is for")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)] = Field(description="What it may do")


class KeyOut(BaseModel):
    id: uuid.UUID
    name: str
    scopes: list[Scope]
    created_at: datetime
    revoked_at: datetime | None


class CreatedKey(KeyOut):
    key: str = Field(description="Only this response contains it; the service stores its hash")
