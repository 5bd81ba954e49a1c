"""Representations of API keys. The key itself is in the response that creates it and in no other."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from app.http.fields import Name, Strict, Time
from app.setting_types import Scope

LONGEST = timedelta(days=3653)


def within_reach(expires_at: datetime) -> datetime:
    """The same time; ValueError unless it is in the future, within ten years."""
    if not timedelta(0) < expires_at - datetime.now(UTC) <= LONGEST:
        raise ValueError("must be in the future, within ten years")
    return expires_at


class Limits(BaseModel):
    """What a key may use; null is the default of the settings (`DENLL_KEY_*`)."""

    requests_per_s: Annotated[float, Field(gt=0.0, le=1e6)] | None = Field(
        default=None, description="Requests a second; ten times as many at once"
    )
    queued_jobs: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="Queued jobs at the same time"
    )
    stored_bytes: Annotated[int, Field(ge=1, le=2**53)] | None = Field(
        default=None, description="Bytes of the archives of its data sets"
    )
    device_s_per_day: Annotated[float, Field(gt=0.0, le=1e9)] | None = Field(
        default=None, description="Device seconds of its jobs in 24 hours; above, it can queue no job"
    )
    high_priority: bool = Field(default=False, description="Whether its jobs may have the priority `high`")


class KeyChange(Limits, Strict):
    """Limits of a key; those that are not sent stay."""


class NewKey(Limits, Strict):
    name: Name = Field(description="What the key is for")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)] = Field(description="What it may do")
    expires_at: Annotated[Time, AfterValidator(within_reach)] | None = Field(
        default=None, description="When it stops working, with a time zone; null: never"
    )


class KeyOut(BaseModel):
    id: uuid.UUID
    name: str
    issuer: str | None = Field(description="Login provider of a person; null for a key")
    subject: str | None = Field(description="Id of a person at that provider; null for a key")
    scopes: list[Scope] = Field(description="What it may do; for a person, as of their last login")
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute")
    revoked_at: datetime | None
    requests_per_s: float | None
    queued_jobs: int | None
    stored_bytes: int | None
    device_s_per_day: float | None
    high_priority: bool


class CreatedKey(KeyOut):
    key: str = Field(description="Only this response contains it; the service stores its hash")
