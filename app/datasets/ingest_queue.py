"""The queue of data sets that wait to be checked, and what an attempt at checking one may write.

Each write names the attempt by its fence and has no effect once another attempt holds the claim; the functions then
return False or None, as in `app.jobs.attempt`. How an archive is read is not known here.
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
    """Take the next data set that waits to be checked. The caller commits at once.

    Args:
        session: Of the database.
        owner: Who takes it.
        lease_s: Seconds until the claim expires unless it is renewed.
        devices: Not used: checking needs no device.
    """
    return work.claim_next(session, Dataset, owner, lease_s)


def count_claimable(session: Session, owner: str, devices: int = 0) -> int:
    """How many data sets wait to be checked."""
    return work.count_queued(session, Dataset)


def renew_lease(session: Session, dataset_id: uuid.UUID, fence: int, lease_s: float) -> HolderCommand | None:
    """Renew the lease by `lease_s` seconds; returns what the holder has to do, None where the claim is lost."""
    work.renew_lease(session, Dataset, dataset_id, fence, lease_s)
    return work.read_command(session, Dataset, dataset_id, fence)


def upload_options(session: Session, dataset_id: uuid.UUID) -> dict[str, Any]:
    """How the upload is to be read, as `POST /datasets` stored it: path_column, label_column and so on."""
    options: dict[str, Any] = session.execute(select(Dataset.upload).where(Dataset.id == dataset_id)).scalar_one()
    return options


def report_progress(session: Session, dataset_id: uuid.UUID, fence: int, progress: Mapping[str, Any]) -> bool:
    """Replace what `GET /datasets/{id}` shows as progress."""
    return work.update_claimed(session, Dataset, dataset_id, fence, {"progress": dict(progress)})


def succeed(session: Session, dataset_id: uuid.UUID, fence: int, facts: Mapping[str, Any]) -> bool:
    """Make the data set usable; every byte of it must be on disk. `facts` are what ingest learned."""
    return work.finish(session, Dataset, dataset_id, fence, State.succeeded, facts=dict(facts), error=None)


def reject(session: Session, dataset_id: uuid.UUID, fence: int, error: Mapping[str, Any]) -> bool:
    """Record that the archive cannot be used; `error` is a problem: code, title, detail, `errors` that name entries."""
    return work.finish(session, Dataset, dataset_id, fence, State.failed, error=dict(error))


def requeue(
    session: Session, dataset_id: uuid.UUID, fence: int, *, counts: bool, limit: int, reason: str
) -> State | None:
    """End the attempt, not the work: the data set is queued again, unless it was tried too often.

    Args:
        session: Of the database.
        dataset_id: The data set.
        fence: Of the attempt.
        counts: Whether the attempt counts toward `limit`.
        limit: The most attempts.
        reason: Not stored for data sets.

    Returns:
        The new state; None when the claim was lost.
    """
    return work.requeue(session, Dataset, dataset_id, fence, counts=counts, limit=limit)


def reap(session: Session, limit: int) -> int:
    """Requeue every data set whose worker stopped renewing its lease; how many. `limit` is the most attempts."""
    return len(work.reap(session, Dataset, limit))
