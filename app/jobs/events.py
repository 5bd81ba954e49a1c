"""A job's events: append-only rows, streamed to clients, whose ids `Last-Event-ID` names.

| kind | data |
|---|---|
| status | status, and where known attempt, reason, detail, model_id |
| progress | the fields of the job's `progress` |
| metric | one epoch report |
| log | level, message |
| done | status; the last event of a job, written in the transaction that ends it |

Callers first update the job's row in the same transaction, an attempt under its fence. The lock on the row makes the
events of one job visible in the order of their ids.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.db.tables import ENDED, JobEvent, State

Kind = Literal["status", "progress", "metric", "log", "done"]


def append(session: Session, job_id: uuid.UUID, kind: Kind, data: Mapping[str, Any]) -> None:
    """Add one event; `data` is strict JSON: finite numbers only."""
    session.execute(insert(JobEvent).values(job_id=job_id, kind=kind, data=dict(data)))


def record_state(session: Session, job_id: uuid.UUID, state: State, **details: Any) -> None:
    """Add a `status` event with these details (None is left out), and a `done` event when the state is final."""
    known = {key: value for key, value in details.items() if value is not None}
    append(session, job_id, "status", {"status": state.value, **known})
    if state in ENDED:
        append(session, job_id, "done", {"status": state.value})


def after(session: Session, job_id: uuid.UUID, last_id: int, *, limit: int = 500) -> Sequence[JobEvent]:
    """Events of a job with an id above `last_id`, oldest first, at most `limit`."""
    statement = (
        select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > last_id).order_by(JobEvent.id).limit(limit)
    )
    return session.scalars(statement).all()
