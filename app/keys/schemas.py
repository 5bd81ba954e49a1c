"""Representations of API keys. The key itself is in the response that creates it and in no other."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from app.http.access import Scope
from app.http.fields import Name, Strict, Time

LONGEST = timedelta(days=3653)


def within_reach(expires_at: datetime) -> datetime:
    """The same time; ValueError unless it lies ahead, and at most ten years."""
    if not timedelta(0) < expires_at - datetime.now(UTC) <= LONGEST:
        raise ValueError("must lie ahead, and at most ten years")
    return expires_at


class NewKey(Strict):
    name: Name = Field(description="What the key is for")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)] = Field(description="What it may do")
    expires_at: Annotated[Time, AfterValidator(within_reach)] | None = Field(
        default=None, description="When it stops working, with a time zone; null: never"
    )


class KeyOut(BaseModel):
    id: uuid.UUID
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute")
    revoked_at: datetime | None


class CreatedKey(KeyOut):
    key: str = Field(description="Only this response contains it; the service stores its hash")
