"""The queue of data sets that wait to be checked, and what an attempt at checking one may write.

Each write names the attempt by its fence and has no effect once another attempt holds the claim; the functions then
return False or None, as in `app.jobs.attempt`. `app.datasets.archive_check` reads the archive.
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
    """Claim the next data set that waits to be checked; None when there is none. The caller commits at once.

    Args:
        owner: Name of the supervisor in the worker registry.
        lease_s: Seconds until the claim expires unless it is renewed.
        devices: Not used: checking needs no device.
    """
    return work.claim_next(session, Dataset, owner, lease_s)


def count_claimable(session: Session, owner: str, devices: int = 0) -> int:
    """How many data sets wait to be checked; the arguments are those of `claim` and not used."""
    return work.count_queued(session, Dataset)


def renew_lease(session: Session, dataset_id: uuid.UUID, fence: int, lease_s: float) -> HolderCommand | None:
    """Extend the lease to `lease_s` seconds from now; returns what `work.read_command` does."""
    return work.renew_lease(session, Dataset, dataset_id, fence, lease_s)


def upload_options(session: Session, dataset_id: uuid.UUID) -> dict[str, Any]:
    """How the upload is to be read, as `POST /datasets` stored it: path_column, label_column and so on."""
    options: dict[str, Any] = session.execute(select(Dataset.upload).where(Dataset.id == dataset_id)).scalar_one()
    return options


def report_progress(session: Session, dataset_id: uuid.UUID, fence: int, progress: Mapping[str, Any]) -> bool:
    """Replace the `progress` of the data set: phase, images, of, fraction."""
    return work.update_claimed(session, Dataset, dataset_id, fence, {"progress": dict(progress)})


def succeed(session: Session, dataset_id: uuid.UUID, fence: int, facts: Mapping[str, Any]) -> bool:
    """Make the data set usable; every byte of it must be on disk. `facts` are what ingest measured."""
    return work.finish(session, Dataset, dataset_id, fence, State.succeeded, facts=dict(facts), error=None)


def reject(session: Session, dataset_id: uuid.UUID, fence: int, error: Mapping[str, Any]) -> bool:
    """Record that the archive cannot be used; `error` is a problem: code, title, detail, `errors` that name entries."""
    return work.finish(session, Dataset, dataset_id, fence, State.failed, error=dict(error))


def requeue(
    session: Session, dataset_id: uuid.UUID, fence: int, *, counts: bool, limit: int, reason: str
) -> State | None:
    """End the attempt without a result; returns what `work.requeue` does.

    Args:
        counts: As in `work.requeue`.
        limit: As in `work.requeue`.
        reason: Not stored for data sets.
    """
    return work.requeue(session, Dataset, dataset_id, fence, counts=counts, limit=limit)


def reap(session: Session, limit: int) -> int:
    """Requeue every data set whose lease has expired; how many. `limit` as in `work.requeue`."""
    return len(work.reap(session, Dataset, limit))
