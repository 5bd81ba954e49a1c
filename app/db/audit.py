"""The audit table: who did what. A row is written in the transaction of the act itself, and never changed."""

from __future__ import annotations

import uuid
from typing import Any, Literal, NamedTuple

from sqlalchemy.orm import Session

from app.db.tables import AuditEntry

Action = Literal[
    "alias.delete",
    "alias.move",
    "dataset.delete",
    "job.cancel",
    "job.delete",
    "job.delete_files",
    "key.change",
    "key.create",
    "key.revoke",
    "labels.delete",
    "labels.edit",
    "model.delete",
    "session.begin",
    "session.change",
    "session.end",
    "weights.delete",
    "weights.install",
]


class Actor(NamedTuple):
    """Who acts: the name and id of an API key or a person, and the request. Who has neither has no id."""

    name: str
    key_id: uuid.UUID | None = None
    request_id: str | None = None


RETENTION = Actor("retention")  # the service itself, by its settings
PROVIDER = Actor("login provider")


def record(session: Session, actor: Actor, action: Action, object: str, **detail: Any) -> None:
    """Add a row to the transaction of the act.

    Args:
        object: The path of the resource that was acted on, such as `/jobs/{id}`.
        detail: More about it, as strict JSON of a few hundred bytes.
    """
    session.add(
        AuditEntry(
            actor=actor.name,
            key_id=actor.key_id,
            request_id=actor.request_id,
            action=action,
            object=object,
            detail=detail,
        )
    )
