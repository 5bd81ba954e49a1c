"""Create, look up and revoke API keys."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.tables import ApiKey
from app.errors import KeyNotFound
from app.http import access

PREFIX = "denll_"  # secret scanners find what has a prefix


def create(
    session: Session, name: str, scopes: Sequence[str], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Create a key: its row, and the key itself, which is not stored."""
    key = PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(name=name, key_sha256=access.digest(key), scopes=sorted(set(scopes)), expires_at=expires_at)
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, key


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
