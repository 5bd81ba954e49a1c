"""A job's history: append-only rows whose ids are what `Last-Event-ID` replays from.

Kinds, all that a client ever sees: `status` {status, attempt?, reason?, detail?}, `progress` (the fields of a job's
`progress`), `metric` (one epoch report), `log` {level, message}, `done` {status}: the last event of every job, written
in the transaction that ends it. Who may write to the job is not decided here: callers first change the job's row,
guarded by state or fence, in the same transaction. That row lock also makes ids of one job become visible in order.
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
    """Add one event at the end of a job's history. `data` is strict JSON: finite numbers only."""
    session.execute(insert(JobEvent).values(job_id=job_id, kind=kind, data=dict(data)))


def changed(session: Session, job_id: uuid.UUID, state: State, **details: Any) -> None:
    """Record that a job's state changed, and `done` after it when that state is final."""
    known = {key: value for key, value in details.items() if value is not None}
    append(session, job_id, "status", {"status": state.value, **known})
    if state in ENDED:
        append(session, job_id, "done", {"status": state.value})


def after(session: Session, job_id: uuid.UUID, last_id: int, *, limit: int = 500) -> Sequence[JobEvent]:
    """Events of a job newer than `last_id`, oldest first."""
    statement = (
        select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > last_id).order_by(JobEvent.id).limit(limit)
    )
    return session.scalars(statement).all()
