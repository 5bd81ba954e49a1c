"""Deletes rows that have expired, and lists the files that rows refer to. No file is deleted here."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.tables import Dataset, IdempotencyKey, Job, Model, State, Worker


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
        uploads={f"{dataset_id}.archive" for dataset_id, state in datasets if state in (State.queued, State.running)},
    )


def delete_expired(session: Session, *, idempotency_keys_s: float, heartbeats_s: float) -> None:
    """Delete idempotency keys older than `idempotency_keys_s` seconds and heartbeat rows older than `heartbeats_s`."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now(-idempotency_keys_s)))
    session.execute(delete(Worker).where(Worker.heartbeat_at < now(-heartbeats_s)))
