"""Quotas of API keys: what a key may have queued, stored and computed. Each is counted from the rows themselves.

This happens in the transaction that adds rows, with the key's row locked: two requests of a key cannot both take its
last place, and there is no counter that could go wrong. The loopback user and the admin key have no quotas.
"""

from __future__ import annotations

import math
import uuid
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, ColumnElement, cast, delete, func, or_, select
from sqlalchemy.orm import Session

from app import work
from app.db.clock import now
from app.db.tables import ApiKey, Dataset, DeletedJobUse, Job, JobEvent, State
from app.errors import Forbidden, QuotaExceeded
from app.settings import Settings

DAY_S = 24 * 3600
QUEUE_RETRY_S, DEVICE_RETRY_S, STORAGE_RETRY_S = 60, 600, 3600
REJECTED = (State.failed, State.cancelled)  # data sets whose files are gone


def check_jobs(session: Session, settings: Settings, key_id: uuid.UUID | None, count: int) -> None:
    """Raise QuotaExceeded if the key may not queue so many jobs more.

    Args:
        settings: The limits of keys that have none of their own.
        key_id: Whose jobs they are.
    """
    key = _lock(session, key_id)
    if key is None:
        return
    if most := key.queued_jobs or settings.key_queued_jobs:
        queued = work.count_queued(session, Job, Job.key_id == key.id)
        if queued + count > most:
            raise _exceeded("queued-jobs", f"has {queued} of {most} queued jobs", QUEUE_RETRY_S)
    if most_s := key.device_s_per_day or settings.key_device_s_per_day:
        used_s = device_seconds(session, key.id)
        if used_s >= most_s:
            detail = f"used {used_s:.0f} of {most_s:.0f} device seconds in the last 24 hours"
            raise _exceeded("device-seconds", detail, DEVICE_RETRY_S)


def check_storage(session: Session, settings: Settings, key_id: uuid.UUID | None, size_bytes: int) -> None:
    """Raise QuotaExceeded if the archives of the key's data sets would take more than it may store.

    Args:
        settings: The limits of keys that have none of their own.
        key_id: Whose data set it is.
        size_bytes: Of the archive that is added.
    """
    key = _lock(session, key_id)
    if key is None or not (most := key.stored_bytes or settings.key_stored_bytes):
        return
    size = cast(Dataset.upload["size_bytes"].as_string(), BigInteger)
    statement = select(func.sum(size)).where(Dataset.key_id == key.id, Dataset.state.not_in(REJECTED))
    stored = int(session.scalar(statement) or 0)
    if stored + size_bytes > most:
        detail = f"stores {stored} of {most} bytes; delete data sets to make room for {size_bytes}"
        raise _exceeded("stored-bytes", detail, STORAGE_RETRY_S)


def may_overtake(session: Session, key_id: uuid.UUID | None) -> bool:
    """Whether the key may give jobs the priority `high`."""
    key = session.get(ApiKey, key_id) if key_id is not None else None
    return key is None or key.high_priority or "admin" in key.scopes


def require_overtaking(session: Session, key_id: uuid.UUID | None) -> None:
    """Raise Forbidden unless the key may give jobs the priority `high`."""
    if not may_overtake(session, key_id):
        raise Forbidden("This key may not give jobs the priority 'high'; an admin allows it with PATCH /keys/{id}.")


def device_seconds(session: Session, key_id: uuid.UUID) -> float:
    """How long devices have worked on jobs of the key in the last 24 hours, summed over the devices of each job.

    A job that was deleted counts until 24 hours after its end.
    """
    deleted = (DeletedJobUse.key_id == key_id, DeletedJobUse.finished_at > now(-DAY_S))
    deleted_s = session.scalar(select(func.sum(DeletedJobUse.device_s)).where(*deleted)) or 0.0
    return deleted_s + _device_seconds(session, Job.key_id == key_id)


def record_deleted_use(session: Session, job: Job) -> None:
    """Record the device seconds of a job that is about to be deleted, and delete records that no longer count."""
    if job.key_id is None or job.finished_at is None:
        return
    old = (DeletedJobUse.key_id == job.key_id, DeletedJobUse.finished_at <= now(-DAY_S))
    session.execute(delete(DeletedJobUse).where(*old))
    if device_s := _device_seconds(session, Job.id == job.id):
        session.add(DeletedJobUse(job_id=job.id, key_id=job.key_id, device_s=device_s, finished_at=job.finished_at))


def _device_seconds(session: Session, *jobs: ColumnElement[bool]) -> float:
    """As `device_seconds`, for the existing jobs that fulfil these conditions."""
    recent = or_(Job.finished_at.is_(None), Job.finished_at > now(-DAY_S))
    statement = (
        select(JobEvent.job_id, JobEvent.data["status"].as_string(), JobEvent.created_at, Job.gpus)
        .join(Job, Job.id == JobEvent.job_id)
        .where(*jobs, Job.started_at.is_not(None), recent, JobEvent.kind == "status")
        .order_by(JobEvent.job_id, JobEvent.id)
    )
    until: datetime = session.scalar(select(now()))  # type: ignore[assignment]
    since = until - timedelta(seconds=DAY_S)
    total_s = 0.0
    started: dict[uuid.UUID, tuple[datetime, int]] = {}  # jobs that devices work on
    for job_id, status, at, devices in session.execute(statement):
        if status == State.running:
            started[job_id] = (at, devices)
        elif status != "cancelling" and job_id in started:
            total_s += _overlap_s(started.pop(job_id), since, at)
    return total_s + sum(_overlap_s(start, since, until) for start in started.values())


def _overlap_s(start: tuple[datetime, int], since: datetime, until: datetime) -> float:
    started_at, devices = start
    return devices * max(0.0, (until - max(started_at, since)).total_seconds())


def _lock(session: Session, key_id: uuid.UUID | None) -> ApiKey | None:
    """The key's row, which no other request of this key passes before this transaction ends."""
    if key_id is None:
        return None
    statement = select(ApiKey).where(ApiKey.id == key_id).with_for_update(key_share=True)
    return session.scalar(statement.execution_options(populate_existing=True))


def _exceeded(policy: str, detail: str, retry_s: float) -> QuotaExceeded:
    return QuotaExceeded(policy, f"This key {detail}.", retry_after_s=math.ceil(retry_s))
