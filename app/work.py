"""Lease and fence for any row that is worked on: claim it, renew the claim, settle it once, take it back from the dead.

Every statement is one UPDATE guarded by state and fence, measured by the database's clock, so any number of workers and
dispatchers may run them at once. What the work is, this module does not know.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, case, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.tables import Dataset, Job, State

Workable = TypeVar("Workable", Dataset, Job)
Table = type[Dataset] | type[Job]
Order = Literal["cancel", "fenced_off"]

POISON: dict[Table, dict[str, str]] = {
    Job: {
        "code": "poison",
        "title": "The job keeps ending its worker",
        "detail": "Several attempts in a row ended without a new checkpoint.",
        "hint": "See in /jobs/{id}/logs what they have in common; a smaller batch_size or image_size often helps.",
    },
    Dataset: {
        "code": "poison",
        "title": "The archive keeps ending its worker",
        "detail": "Several attempts in a row at checking its images ended before they were done.",
        "hint": "Upload the archive in parts to find the picture that does it.",
    },
}


class Claim(NamedTuple):
    id: uuid.UUID
    fence: int
    attempt: int
    request_id: str | None


class Reaped(NamedTuple):
    id: uuid.UUID
    state: State  # queued again, or failed as poison, or cancelled
    attempt: int


def claim_next(
    session: Session, table: Table, owner: str, lease_s: float, *fitting: ColumnElement[bool]
) -> Claim | None:
    """Take the oldest queued row of the highest priority that fits, or None. The caller commits at once."""
    oldest = (
        select(table.id)
        .where(table.state == State.queued, *fitting)
        .order_by(table.priority.desc(), table.created_at, table.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        update(table)
        .where(table.id == oldest, table.state == State.queued)
        .values(
            state=State.running,
            attempt=table.attempt + 1,
            fence=table.fence + 1,
            lease_owner=owner,
            lease_expires_at=now(lease_s),
            heartbeat_at=now(),
            started_at=func.coalesce(table.started_at, now()),
        )
        .returning(table.id, table.fence, table.attempt, table.request_id)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    return Claim(*row) if row else None


def held(table: Table, row_id: uuid.UUID, fence: int) -> tuple[ColumnElement[bool], ...]:
    """The guard of every effect: this claim, and no later one, still holds."""
    return (table.id == row_id, table.fence == fence, table.state == State.running)


def write(session: Session, table: Table, row_id: uuid.UUID, fence: int, values: Mapping[str, Any]) -> bool:
    """Set columns of a row we hold; False when the claim is lost, and then nothing was written."""
    statement = (
        update(table).where(*held(table, row_id, fence)).values(**values).execution_options(synchronize_session=False)
    )
    return session.execute(statement).rowcount == 1  # type: ignore[attr-defined,no-any-return]


def heartbeat(session: Session, table: Table, row_id: uuid.UUID, fence: int, lease_s: float) -> bool:
    return write(session, table, row_id, fence, {"lease_expires_at": now(lease_s), "heartbeat_at": now()})


def settle(session: Session, table: Table, row_id: uuid.UUID, fence: int, state: State, **values: Any) -> bool:
    """End a row we hold. Success and a late cancellation may race for the row: one of the two wins, here."""
    ended = {"state": state, "finished_at": now(), "lease_owner": None, "lease_expires_at": None, **values}
    return write(session, table, row_id, fence, ended)


def put_back(
    session: Session, table: Table, row_id: uuid.UUID, fence: int, *, counts: bool, limit: int
) -> State | None:
    """End an attempt, not its work: queued again, failed (poison) after `limit` attempts without progress or cancelled.

    A drain does not count. None when the claim was lost.
    """
    return _end_attempts(session, table, limit, counts, *held(table, row_id, fence)).get(row_id)


def reap(session: Session, table: Table, limit: int) -> list[Reaped]:
    """Put back every row whose lease has expired; safe to run from several processes at once."""
    expired = (table.state == State.running, or_(table.lease_expires_at.is_(None), table.lease_expires_at < now()))
    ids = list(session.scalars(select(table.id).where(*expired).with_for_update(skip_locked=True)))
    if not ids:
        return []
    ended = _end_attempts(session, table, limit, True, table.id.in_(ids), *expired)
    attempts = dict(session.execute(select(table.id, table.attempt).where(table.id.in_(ended))).all())
    return [Reaped(row_id, state, attempts[row_id]) for row_id, state in ended.items()]


def _end_attempts(
    session: Session, table: Table, limit: int, counts: bool, *where: ColumnElement[bool]
) -> dict[uuid.UUID, State]:
    failures = table.attempts_without_progress + (1 if counts else 0)
    cancelled, poison = table.cancel_requested_at.is_not(None), failures >= limit
    ended = or_(cancelled, poison)
    statement = (
        update(table)
        .where(*where)
        .values(
            state=case((cancelled, State.cancelled.value), (poison, State.failed.value), else_=State.queued.value),
            attempts_without_progress=failures,
            finished_at=case((ended, now()), else_=None),
            lease_owner=None,
            lease_expires_at=None,
            rung_at=None,
        )
        .returning(table.id, table.state)
        .execution_options(synchronize_session=False)
    )
    states = dict(session.execute(statement).all())
    failed = [row_id for row_id, state in states.items() if state == State.failed]
    if failed:
        session.execute(
            update(table)
            .where(table.id.in_(failed))
            .values(error=POISON[table])
            .execution_options(synchronize_session=False)
        )
    return states


def request_cancel(session: Session, table: Table, row_id: uuid.UUID) -> State | None:
    """Cancel a queued row at once, ask a running one to stop; the state after, or None when it has already ended."""
    statement = (
        update(table)
        .where(table.id == row_id, table.state.in_((State.queued, State.running)))
        .values(
            state=case((table.state == State.queued, State.cancelled.value), else_=table.state),
            finished_at=case((table.state == State.queued, now()), else_=None),
            cancel_requested_at=func.coalesce(table.cancel_requested_at, now()),
        )
        .returning(table.state)
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).scalar_one_or_none()


def requeue(session: Session, table: Table, row_id: uuid.UUID, **values: Any) -> bool:
    """Queue a failed or cancelled row again, as if it had not been tried; False when it is in another state."""
    statement = (
        update(table)
        .where(table.id == row_id, table.state.in_((State.failed, State.cancelled)))
        .values(
            state=State.queued,
            attempts_without_progress=0,
            cancel_requested_at=None,
            finished_at=None,
            error=None,
            rung_at=None,
            **values,
        )
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).rowcount == 1  # type: ignore[attr-defined,no-any-return]


def order(session: Session, table: Table, row_id: uuid.UUID, fence: int) -> Order | None:
    """What the holder should do other than go on: stop, as somebody cancelled or as it no longer holds the row."""
    row = session.execute(select(table.cancel_requested_at).where(*held(table, row_id, fence))).one_or_none()
    return "fenced_off" if row is None else "cancel" if row[0] is not None else None


def due_for_bell(session: Session, table: Table, ring_again_s: float) -> int:
    """Mark queued rows not rung for lately as rung and say how many there are: the dispatcher rings that often."""
    stale = or_(table.rung_at.is_(None), table.rung_at < now(-ring_again_s))
    statement = (
        update(table)
        .where(table.state == State.queued, stale)
        .values(rung_at=now())
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).rowcount  # type: ignore[attr-defined,no-any-return]


def queued(session: Session, table: Table, *fitting: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).where(table.state == State.queued, *fitting)) or 0
