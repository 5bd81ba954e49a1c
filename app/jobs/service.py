"""Create, list, change, cancel, retry and delete jobs. What a running attempt writes is in `attempt`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from app import quotas, work
from app.db.tables import ENDED, Dataset, Epoch, Job, Model, State
from app.errors import JobFinished, JobNotFinished, JobNotFound, NotReady, QueueFull
from app.jobs import events
from app.models import service as models
from app.settings import Settings

QUEUE_RETRY_S = 60


def create(session: Session, rows: Sequence[Mapping[str, Any]], *, max_queued: int) -> list[Job]:
    """Queue a job and its baselines.

    Args:
        rows: Columns of each row; the first is the job, the others are its baselines.
        max_queued: The most jobs that may wait at once.

    Raises:
        QueueFull: With these jobs more than `max_queued` would wait.
    """
    if work.count_queued(session, Job) + len(rows) > max_queued:
        raise QueueFull(f"{max_queued} jobs are already waiting.", retry_after_s=QUEUE_RETRY_S)
    jobs: list[Job] = []
    for values in rows:
        job = Job(**values, compared_with_id=jobs[0].id if jobs else None)
        session.add(job)
        session.flush()
        session.refresh(job)
        events.record_state(session, job.id, State.queued)
        jobs.append(job)
    return jobs


def get(session: Session, job_id: uuid.UUID) -> Job:
    """The job with this id; JobNotFound."""
    job = session.get(Job, job_id)
    if job is None:
        raise JobNotFound("There is no job with this id.")
    return job


def lock(session: Session, job_id: uuid.UUID) -> Job:
    """The job, which nobody else changes or deletes before this transaction ends; JobNotFound."""
    statement = select(Job).where(Job.id == job_id).with_for_update(key_share=True)
    job = session.scalar(statement.execution_options(populate_existing=True))
    if job is None:
        raise JobNotFound("There is no job with this id.")
    return job


def comparison_jobs(session: Session, job: Job) -> list[Job]:
    """A job and those it is compared with, in the order of the request; empty when there are no others."""
    first = job.compared_with_id or job.id
    group = list(
        session.scalars(
            select(Job).where((Job.id == first) | (Job.compared_with_id == first)).order_by(Job.created_at, Job.id)
        )
    )
    return group if len(group) > 1 else []


def model_ids(session: Session, jobs: Sequence[Job]) -> dict[uuid.UUID, uuid.UUID]:
    """The published model of each job that has one."""
    rows = session.execute(select(Model.job_id, Model.id).where(Model.job_id.in_([job.id for job in jobs])))
    return {job_id: model_id for job_id, model_id in rows if job_id is not None}


def select_jobs(status: str | None, type_: str | None, dataset_id: uuid.UUID | None) -> Select[Job]:
    """A query for jobs with this status, type and data set, as far as they are not None; `status` as clients see it."""
    statement = select(Job)
    if status == "cancelling":
        statement = statement.where(Job.state == State.running, Job.cancel_requested_at.is_not(None))
    elif status == "running":
        statement = statement.where(Job.state == State.running, Job.cancel_requested_at.is_(None))
    elif status is not None:
        statement = statement.where(Job.state == State(status))
    if type_ is not None:
        statement = statement.where(Job.type == type_)
    if dataset_id is not None:
        statement = statement.where(Job.dataset_id == dataset_id)
    return statement


def change(session: Session, job_id: uuid.UUID, values: Mapping[str, Any]) -> Job:
    """Set columns of a job: name, tags or priority, which only matters while the job waits. JobNotFound."""
    job = lock(session, job_id)
    if values:
        session.execute(update(Job).where(Job.id == job_id).values(**values))
        session.refresh(job)
    return job


def cancel(session: Session, job_id: uuid.UUID) -> Job:
    """End a queued job, ask a running one to stop; JobFinished when it has ended, and nothing changes."""
    job = lock(session, job_id)
    state = work.request_cancel(session, Job, job_id)
    session.refresh(job)
    if state is None:
        raise JobFinished(f"The job is {job.state}; only a queued or running one can be cancelled.")
    if state == State.cancelled:
        events.record_state(session, job_id, state)
    else:
        events.append(session, job_id, "status", {"status": "cancelling"})
    return job


def retry(session: Session, job_id: uuid.UUID, *, scratch: bool, settings: Settings) -> Job:
    """Queue a failed or cancelled job again.

    Args:
        scratch: Train from the beginning; else from the last checkpoint.
        settings: The most jobs that may wait at once, and the quotas of the key whose job it is.

    Raises:
        JobNotFound: There is no such job.
        JobFinished: It has succeeded.
        JobNotFinished: It is queued or running.
        NotReady: Its data set was deleted, or the model that it scores with.
        QueueFull: Too many jobs wait.
        QuotaExceeded: Too many jobs of its key wait, or the key has used its device time.
    """
    if work.count_queued(session, Job) >= settings.max_queued:
        raise QueueFull(f"{settings.max_queued} jobs are already waiting.", retry_after_s=QUEUE_RETRY_S)
    job = get(session, job_id)
    # What the job needs is locked before the job, as by those who delete it (docs/decisions/0029).
    session.execute(select(Dataset.id).where(Dataset.id == job.dataset_id).with_for_update(read=True))
    model_id = job.spec.get("model_id")
    has_model = model_id is None or models.lock(session, uuid.UUID(model_id))
    quotas.check_jobs(session, settings, job.key_id, 1)
    lock(session, job_id)
    again = {"checkpoint_step": None, "checkpoint_path": None, "progress": None, "restart_from": Job.fence}
    requeued = work.retry(session, Job, job_id, files_deleted_at=None, **(again if scratch else {}))
    session.refresh(job)
    if not requeued:
        if job.state == State.succeeded:
            raise JobFinished("The job has succeeded; there is nothing to retry.")
        raise JobNotFinished(f"The job is {job.state}; only a failed or cancelled one can be retried.")
    if job.dataset_id is None:
        raise NotReady("The job's data set was deleted.", code="dataset_deleted")
    if not has_model:
        raise NotReady("The model that the job scores with was deleted.", code="model_deleted")
    if scratch:
        session.execute(sa.delete(Epoch).where(Epoch.job_id == job_id))
    events.record_state(session, job_id, State.queued, reason="retry")
    return job


def delete(session: Session, job_id: uuid.UUID) -> str | None:
    """Delete a job that has ended; its model stays. The caller removes the files. JobNotFound, JobNotFinished.

    Returns:
        The name that it had.
    """
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    if job is None:
        raise JobNotFound("There is no job with this id.")
    if job.state not in ENDED:
        raise JobNotFinished(f"The job is {job.state}; cancel it first.")
    quotas.record_deleted_use(session, job)
    session.delete(job)
    return job.name


def epoch_reports(session: Session, job_id: uuid.UUID) -> list[tuple[int, dict[str, Any]]]:
    """Number and report of each epoch, in order."""
    rows = session.execute(select(Epoch.number, Epoch.report).where(Epoch.job_id == job_id).order_by(Epoch.number))
    return [(number, report) for number, report in rows]
