"""Create, look up and revoke API keys."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.tables import ApiKey
from app.errors import KeyNotFound
from app.http import callers

PREFIX = "denll_"  # secret scanners find what has a prefix


def create(
    session: Session,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None = None,
    limits: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[ApiKey, str]:
    """Create a key: its row, and the key itself, which is not stored; `limits` are columns of its row."""
    key = PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(name=name, key_sha256=callers.digest(key), scopes=sorted(set(scopes)), expires_at=expires_at, **limits)
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, key


def change(session: Session, key_id: uuid.UUID, limits: Mapping[str, Any]) -> ApiKey:
    """Set limits of a key, by their columns; KeyNotFound."""
    row = get(session, key_id)
    for column, value in limits.items():
        setattr(row, column, value)
    session.flush()
    return row


def revoke(session: Session, key_id: uuid.UUID) -> None:
    """Revoke a key for good; KeyNotFound. A key that is revoked already stays so."""
    statement = update(ApiKey).where(ApiKey.id == key_id).values(revoked_at=func.coalesce(ApiKey.revoked_at, now()))
    if session.execute(statement).rowcount == 0:  # type: ignore[attr-defined]
        raise KeyNotFound("There is no API key with this id.")


def get(session: Session, key_id: uuid.UUID) -> ApiKey:
    """The key with this id; KeyNotFound."""
    row = session.scalar(select(ApiKey).where(ApiKey.id == key_id))
    if row is None:
        raise KeyNotFound("There is no API key with this id.")
    return row
