"""Reads the audit table."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.db.tables import AuditEntry


def list_entries(
    session: Session, action: str | None, actor: str | None, object: str | None, *, below: int, limit: int
) -> Sequence[AuditEntry]:
    """Entries, newest first; None for what they are not filtered by.

    Args:
        object: The path of a resource; entries about what lies below it fit as well.
        below: Only entries with a smaller id.
        limit: At most so many.
    """
    statement = select(AuditEntry).where(AuditEntry.id < below)
    if action is not None:
        statement = statement.where(AuditEntry.action == action)
    if actor is not None:
        statement = statement.where(AuditEntry.actor == actor)
    if object is not None:
        below_it = AuditEntry.object.startswith(f"{object.rstrip('/')}/", autoescape=True)
        statement = statement.where(or_(AuditEntry.object == object, below_it))
    return session.scalars(statement.order_by(AuditEntry.id.desc()).limit(limit)).all()
