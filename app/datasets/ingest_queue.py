"""What an attempt at checking a data set may write. Every effect is guarded by its fence, as in `app.jobs.attempt`.

How an archive is read, this module does not know.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import work
from app.db.tables import Dataset, State
from app.work import Claim, HolderCommand


def claim(session: Session, owner: str, lease_s: float, devices: int = 0) -> Claim | None:
    """Take the next data set that waits to be checked; no device is needed for it. The caller commits at once."""
    return work.claim_next(session, Dataset, owner, lease_s)


def count_claimable(session: Session, owner: str, devices: int = 0) -> int:
    """How many data sets wait to be checked."""
    return work.count_queued(session, Dataset)


def renew_lease(session: Session, dataset_id: uuid.UUID, fence: int, lease_s: float) -> HolderCommand | None:
    """Renew the lease, and hear what the holder should do."""
    work.renew_lease(session, Dataset, dataset_id, fence, lease_s)
    return work.read_command(session, Dataset, dataset_id, fence)


def upload_options(session: Session, dataset_id: uuid.UUID) -> dict[str, Any]:
    """How the upload is to be read, as `POST /datasets` stored it: label_column, clean_column, image_size, resize."""
    options: dict[str, Any] = session.execute(select(Dataset.upload).where(Dataset.id == dataset_id)).scalar_one()
    return options


def report_progress(session: Session, dataset_id: uuid.UUID, fence: int, progress: Mapping[str, Any]) -> bool:
    """Replace what `GET /datasets/{id}` shows as progress."""
    return work.update_claimed(session, Dataset, dataset_id, fence, {"progress": dict(progress)})


def ready(session: Session, dataset_id: uuid.UUID, fence: int, facts: Mapping[str, Any]) -> bool:
    """Every byte is on disk and verified: from now on the data set can be used."""
    return work.finish(session, Dataset, dataset_id, fence, State.succeeded, facts=dict(facts), error=None)


def reject(session: Session, dataset_id: uuid.UUID, fence: int, error: Mapping[str, Any]) -> bool:
    """The archive cannot be used: `error` has code, title, detail, and `errors` that name entries."""
    return work.finish(session, Dataset, dataset_id, fence, State.failed, error=dict(error))


def requeue(
    session: Session, dataset_id: uuid.UUID, fence: int, *, counts: bool, limit: int, reason: str
) -> State | None:
    """End the attempt, not the work: queued again, unless given up or tried too often; None when the claim was lost."""
    return work.requeue(session, Dataset, dataset_id, fence, counts=counts, limit=limit)


def reap(session: Session, limit: int) -> int:
    """Put back every data set whose worker stopped renewing its lease."""
    return len(work.reap(session, Dataset, limit))
