"""Which rows may be deleted, and what files rows refer to. Files are deleted in `worker`.

Nothing is deleted that is still needed. A job is deleted only if it has no model and no queued or running job refers
to it; a label version only if it is not the newest and no job or model has learned from it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, delete, exists, func, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from app.db import audit
from app.db.clock import now
from app.db.tables import (
    ACTIVE,
    ENDED,
    AuditEntry,
    Dataset,
    IdempotencyKey,
    Job,
    LabelVersion,
    LoginSession,
    Model,
    PendingLogin,
    Worker,
)


class ReferencedFiles(NamedTuple):
    """Names in each folder of the storage that a row refers to: ids, and file names of uploads still to be read."""

    datasets: set[str]
    jobs: set[str]
    models: set[str]
    uploads: set[str]


def referenced_files(session: Session) -> ReferencedFiles:
    """Every file or folder of the storage that must stay."""
    datasets = session.execute(select(Dataset.id, Dataset.state)).all()
    return ReferencedFiles(
        datasets={str(dataset_id) for dataset_id, _ in datasets},
        jobs={str(job_id) for job_id in session.scalars(select(Job.id))},
        models={str(model_id) for model_id in session.scalars(select(Model.id))},
        uploads={f"{dataset_id}.archive" for dataset_id, state in datasets if state in ACTIVE},
    )


def delete_expired(session: Session, *, idempotency_keys_s: float, heartbeats_s: float) -> None:
    """Delete idempotency keys older than `idempotency_keys_s` seconds, heartbeat rows older than `heartbeats_s`, and
    logins and sessions that have expired."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now(-idempotency_keys_s)))
    session.execute(delete(Worker).where(Worker.heartbeat_at < now(-heartbeats_s)))
    for expiring in (LoginSession, PendingLogin):
        session.execute(delete(expiring).where(expiring.expires_at <= now()))


# --- By the settings of the operator ----------------------------------------------------------------------------------


class Expired(NamedTuple):
    """What is older than the settings allow."""

    jobs: Sequence[uuid.UUID]
    job_files: Sequence[uuid.UUID]  # jobs whose files alone go
    label_versions: Sequence[tuple[uuid.UUID, int]]
    audit_entries: int


def find_expired(
    session: Session,
    *,
    jobs_s: float | None,
    job_files_s: float | None,
    label_versions_s: float | None,
    audit_s: float | None,
) -> Expired:
    """What would be deleted now; each age in seconds, None where it is kept for ever."""
    versions = [] if label_versions_s is None else session.execute(_old_label_versions(label_versions_s)).all()
    audited = select(func.count()).select_from(AuditEntry)
    return Expired(
        jobs=[] if jobs_s is None else session.scalars(_old_jobs(jobs_s)).all(),
        job_files=[] if job_files_s is None else session.scalars(_jobs_with_old_files(job_files_s)).all(),
        label_versions=[(dataset_id, version) for dataset_id, version in versions],
        audit_entries=0
        if audit_s is None
        else session.scalar(audited.where(AuditEntry.created_at < now(-audit_s))) or 0,
    )


def delete_jobs(session: Session, age_s: float, limit: int) -> list[uuid.UUID]:
    """Delete at most `limit` jobs that ended more than `age_s` seconds ago; the caller removes their files."""
    ids = list(session.scalars(_old_jobs(age_s).limit(limit).with_for_update(of=Job, skip_locked=True)))
    session.execute(delete(Job).where(Job.id.in_(ids)))
    for job_id in ids:
        audit.record(session, audit.RETENTION, "job.delete", f"/jobs/{job_id}")
    return ids


def lock_job_with_old_files(session: Session, age_s: float) -> uuid.UUID | None:
    """The id of one job whose files are to be deleted, locked, so that nobody retries it meanwhile."""
    return session.scalar(_jobs_with_old_files(age_s).limit(1).with_for_update(of=Job, skip_locked=True))


def record_deleted_files(session: Session, job_id: uuid.UUID) -> None:
    """Record that the files of a job were deleted: a retry begins from scratch."""
    values = {"files_deleted_at": now(), "checkpoint_step": None, "checkpoint_path": None}
    session.execute(update(Job).where(Job.id == job_id).values(**values))
    audit.record(session, audit.RETENTION, "job.delete_files", f"/jobs/{job_id}")


def delete_label_versions(session: Session, age_s: float, limit: int) -> list[tuple[uuid.UUID, int]]:
    """Delete at most `limit` old versions of labels; the caller removes their files.

    The rows of their data sets are locked, so that no job that names one of them is submitted meanwhile.
    """
    statement = _old_label_versions(age_s).limit(limit)
    datasets = {dataset_id for dataset_id, _ in session.execute(statement)}
    session.execute(select(Dataset.id).where(Dataset.id.in_(datasets)).order_by(Dataset.id).with_for_update())
    locked = statement.where(LabelVersion.dataset_id.in_(datasets))
    versions = [(dataset_id, version) for dataset_id, version in session.execute(locked)]
    session.execute(delete(LabelVersion).where(tuple_(LabelVersion.dataset_id, LabelVersion.version).in_(versions)))
    for dataset_id, version in versions:
        audit.record(session, audit.RETENTION, "labels.delete", f"/datasets/{dataset_id}/labels/{version}")
    return versions


def delete_audit_entries(session: Session, age_s: float, limit: int) -> int:
    """Delete at most `limit` entries of the audit table that are older than `age_s` seconds; how many."""
    old = select(AuditEntry.id).where(AuditEntry.created_at < now(-age_s)).order_by(AuditEntry.id).limit(limit)
    return session.execute(delete(AuditEntry).where(AuditEntry.id.in_(old))).rowcount  # type: ignore[attr-defined,no-any-return]


def _old_jobs(age_s: float) -> Select[uuid.UUID]:
    other = aliased(Job)
    refers = (other.compared_with_id == Job.id) | (other.retrain_of_id == Job.id)
    return (
        select(Job.id)
        .where(
            *_ended(age_s),
            ~exists().where(Model.job_id == Job.id),
            ~exists().where(refers, other.state.not_in(ENDED)),
        )
        .order_by(Job.finished_at, Job.id)
    )


def _jobs_with_old_files(age_s: float) -> Select[uuid.UUID]:
    return select(Job.id).where(*_ended(age_s), Job.files_deleted_at.is_(None)).order_by(Job.finished_at, Job.id)


def _ended(age_s: float) -> tuple[Any, ...]:
    return Job.state.in_(ENDED), Job.finished_at < now(-age_s)


def _old_label_versions(age_s: float) -> Select[uuid.UUID, int]:
    learned_by_job = (Job.dataset_id == LabelVersion.dataset_id, Job.label_version == LabelVersion.version)
    learned_by_model = (
        Model.dataset_id == LabelVersion.dataset_id,
        Model.metrics["label_version"].as_integer() == LabelVersion.version,
    )
    return (
        select(LabelVersion.dataset_id, LabelVersion.version)
        .join(Dataset, Dataset.id == LabelVersion.dataset_id)
        .where(
            LabelVersion.created_at < now(-age_s),
            LabelVersion.version < Dataset.label_version,
            ~exists().where(*learned_by_job),
            ~exists().where(*learned_by_model),
        )
        .order_by(LabelVersion.created_at, LabelVersion.dataset_id, LabelVersion.version)
    )
