"""Leases and fences for the rows that workers work on: jobs and uploaded data sets.

A worker claims a queued row for a limited time (the lease) and renews the lease while it works. Every claim raises the
row's fence, a number that each later write must name: the writes of a worker that lost its lease have no effect. Times
are the database's, so the clocks of hosts may differ. Every function is safe to call from several processes at once.
The caller commits.

`table` is `Job` or `Dataset`, `row_id` the id of a row in it, and `fence` the number of the claim on that row.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Row, case, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.tables import ACTIVE, Dataset, Job, State

WorkTable = type[Dataset] | type[Job]
HolderCommand = Literal["cancel", "fenced_off"]

POISON: dict[WorkTable, dict[str, str]] = {
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
        "hint": "Upload the archive in parts to find the image that does it.",
    },
}


class Claim(NamedTuple):
    """A row that the caller holds: `fence` must be named by every write, `attempt` counts from 1."""

    id: uuid.UUID
    fence: int
    attempt: int
    request_id: str | None  # of the HTTP request that created the row


class Reaped(NamedTuple):
    """A row whose lease expired, after it was taken from its holder."""

    id: uuid.UUID
    state: State  # queued again, failed (poison) or cancelled
    attempt: int


# --- Claiming ---------------------------------------------------------------------------------------------------------


def claim_next(
    session: Session, table: WorkTable, owner: str, lease_s: float, *conditions: ColumnElement[bool]
) -> Claim | None:
    """Claim the oldest queued row of the highest priority.

    Args:
        owner: Name of the claiming process, unique over all hosts.
        lease_s: Seconds until the claim ends unless it is renewed.
        conditions: What else the row must fulfil, such as the number of devices it needs.

    Returns:
        The claim, or None when no queued row fulfils the conditions.
    """
    # Choose one row. Postgres locks it and skips rows that another worker is claiming at this moment, so two workers
    # choose different rows instead of waiting for each other. SQLite has one writer at a time and needs no lock.
    candidate = (
        select(table.id)
        .where(table.state == State.queued, *conditions)
        .order_by(table.priority.desc(), table.created_at, table.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    # Claim it in the same statement. The state is checked again: it may have changed before the lock was granted. The
    # fence goes up, so whatever an earlier holder still writes is refused. `started_at` is that of the first attempt.
    statement = (
        update(table)
        .where(table.id == candidate, table.state == State.queued)
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


def count_queued(session: Session, table: WorkTable, *conditions: ColumnElement[bool]) -> int:
    """How many queued rows fulfil the conditions."""
    return session.scalar(select(func.count()).where(table.state == State.queued, *conditions)) or 0


# --- Writing under a claim --------------------------------------------------------------------------------------------


def claim_conditions(table: WorkTable, row_id: uuid.UUID, fence: int) -> tuple[ColumnElement[bool], ...]:
    """Conditions that only a row still held under this fence fulfils."""
    return (table.id == row_id, table.fence == fence, table.state == State.running)


def update_claimed(
    session: Session, table: WorkTable, row_id: uuid.UUID, fence: int, values: Mapping[str, Any]
) -> bool:
    """Set columns of a claimed row; False when the claim is lost, and then nothing was written."""
    statement = (
        update(table)
        .where(*claim_conditions(table, row_id, fence))
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).rowcount == 1  # type: ignore[attr-defined,no-any-return]


def renew_lease(
    session: Session, table: WorkTable, row_id: uuid.UUID, fence: int, lease_s: float
) -> HolderCommand | None:
    """Extend the lease to `lease_s` seconds from now; returns what `read_command` does."""
    statement = (
        update(table)
        .where(*claim_conditions(table, row_id, fence))
        .values(lease_expires_at=now(lease_s), heartbeat_at=now())
        .returning(table.cancel_requested_at)
        .execution_options(synchronize_session=False)
    )
    return _command(session.execute(statement).one_or_none())


def read_command(session: Session, table: WorkTable, row_id: uuid.UUID, fence: int) -> HolderCommand | None:
    """What the holder must do: stop because of a cancellation ("cancel") or a lost claim ("fenced_off"), or nothing."""
    conditions = claim_conditions(table, row_id, fence)
    return _command(session.execute(select(table.cancel_requested_at).where(*conditions)).one_or_none())


def _command(claimed: Row[datetime | None] | None) -> HolderCommand | None:
    """A command from `cancel_requested_at` of the claimed row; None when the caller holds no such row."""
    if claimed is None:
        return "fenced_off"
    return "cancel" if claimed.cancel_requested_at is not None else None


def finish(session: Session, table: WorkTable, row_id: uuid.UUID, fence: int, state: State, **values: Any) -> bool:
    """End the work on a claimed row in a final state; False when the claim is lost.

    Args:
        state: `succeeded`, `failed` or `cancelled`.
        values: Further columns to set, such as `error`.
    """
    columns = {"state": state, "finished_at": now(), "lease_owner": None, "lease_expires_at": None, **values}
    return update_claimed(session, table, row_id, fence, columns)


# --- Ending attempts --------------------------------------------------------------------------------------------------


def requeue(
    session: Session, table: WorkTable, row_id: uuid.UUID, fence: int, *, counts: bool, limit: int
) -> State | None:
    """End an attempt without a result; the row is queued again unless it was cancelled or failed too often.

    Args:
        counts: Whether this attempt counts as one without progress; one ended by a shutdown does not.
        limit: Attempts without progress in a row after which the row fails with the error `poison`.

    Returns:
        The row's new state, or None when the claim is lost.
    """
    return _end_attempts(session, table, limit, counts, *claim_conditions(table, row_id, fence)).get(row_id)


def reap(session: Session, table: WorkTable, limit: int) -> list[Reaped]:
    """Requeue every row whose lease has expired; `limit` as in `requeue`."""
    expired = (table.state == State.running, or_(table.lease_expires_at.is_(None), table.lease_expires_at < now()))
    ids = list(session.scalars(select(table.id).where(*expired).with_for_update(skip_locked=True)))
    if not ids:
        return []
    ended = _end_attempts(session, table, limit, True, table.id.in_(ids), *expired)
    attempts = dict(session.execute(select(table.id, table.attempt).where(table.id.in_(ended))).all())
    return [Reaped(row_id, state, attempts[row_id]) for row_id, state in ended.items()]


def _end_attempts(
    session: Session, table: WorkTable, limit: int, counts: bool, *conditions: ColumnElement[bool]
) -> dict[uuid.UUID, State]:
    """Requeue, fail or cancel the rows that fulfil the conditions; their new states."""
    failures = table.attempts_without_progress + (1 if counts else 0)
    cancelled, poison = table.cancel_requested_at.is_not(None), failures >= limit
    ended = or_(cancelled, poison)
    statement = (
        update(table)
        .where(*conditions)
        .values(
            state=case((cancelled, State.cancelled.value), (poison, State.failed.value), else_=State.queued.value),
            attempts_without_progress=failures,
            finished_at=case((ended, now()), else_=None),
            lease_owner=None,
            lease_expires_at=None,
            notified_at=None,
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


# --- For clients ------------------------------------------------------------------------------------------------------


def request_cancel(session: Session, table: WorkTable, row_id: uuid.UUID) -> State | None:
    """Cancel a queued row at once, ask the holder of a running one to stop.

    Returns:
        The row's state after that, or None when it had already ended or does not exist.
    """
    statement = (
        update(table)
        .where(table.id == row_id, table.state.in_(ACTIVE))
        .values(
            state=case((table.state == State.queued, State.cancelled.value), else_=table.state),
            finished_at=case((table.state == State.queued, now()), else_=None),
            cancel_requested_at=func.coalesce(table.cancel_requested_at, now()),
        )
        .returning(table.state)
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).scalar_one_or_none()


def retry(session: Session, table: WorkTable, row_id: uuid.UUID, **values: Any) -> bool:
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
            notified_at=None,
            **values,
        )
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).rowcount == 1  # type: ignore[attr-defined,no-any-return]


# --- For the dispatcher -----------------------------------------------------------------------------------------------


def mark_notified(session: Session, table: WorkTable, renotify_s: float) -> int:
    """Mark queued rows as notified about, except those marked within the last `renotify_s` seconds; how many."""
    due = or_(table.notified_at.is_(None), table.notified_at < now(-renotify_s))
    statement = (
        update(table)
        .where(table.state == State.queued, due)
        .values(notified_at=now())
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).rowcount  # type: ignore[attr-defined,no-any-return]
