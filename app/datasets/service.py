"""Rows of data sets: insert, look up, delete. What a data set holds is in its files: `ml.formats.dataset_index`."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.tables import ACTIVE, Dataset, Job, LabelVersion, State
from app.errors import DatasetNotFound, InUse, NotReady
from ml.formats import label_versions

STATUS = {
    State.queued: "ingesting",
    State.running: "ingesting",
    State.succeeded: "ready",
    State.failed: "failed",
    State.cancelled: "failed",
}
STATES = {status: [state for state, s in STATUS.items() if s == status] for status in set(STATUS.values())}


def create(
    session: Session,
    dataset_id: uuid.UUID,
    name: str,
    upload: dict[str, Any],
    request_id: str | None,
    key_id: uuid.UUID | None = None,
) -> Dataset:
    """Insert a data set that waits to be checked; its archive lies in the uploads folder under the same id.

    Args:
        dataset_id: The id of the new row.
        name: Shown in lists.
        upload: The fields that say how to read the archive, `size_bytes` and `sha256`.
        request_id: Id of the HTTP request that uploaded it.
        key_id: The API key in whose quotas it counts.
    """
    row = Dataset(id=dataset_id, name=name, upload=upload, request_id=request_id, key_id=key_id)
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get(session: Session, dataset_id: uuid.UUID) -> Dataset:
    """The data set with this id; DatasetNotFound."""
    row = session.get(Dataset, dataset_id)
    if row is None:
        raise DatasetNotFound("There is no data set with this id.")
    return row


def get_ready(session: Session, dataset_id: uuid.UUID, *, keep: bool = False) -> Dataset:
    """The row of a data set that can be used.

    Args:
        keep: Lock the row, so that nobody deletes it before this transaction ends.

    Raises:
        DatasetNotFound: There is no such data set.
        NotReady: It is not checked yet, or was rejected.
    """
    statement = select(Dataset).where(Dataset.id == dataset_id)
    row = session.scalar(statement.with_for_update(read=True) if keep else statement)
    if row is None:
        raise DatasetNotFound("There is no data set with this id.")
    if row.state != State.succeeded:
        status = STATUS[row.state]
        again = "wait until it is ready" if status == "ingesting" else "upload it again"
        raise NotReady(f"The data set is {status}; {again}.")
    return row


def has_version(session: Session, dataset: Dataset, version: int) -> bool:
    """Whether this version of a data set's labels exists; old ones may have been deleted (`app.retention`)."""
    if version in (label_versions.UPLOADED, dataset.label_version):
        return True
    return session.get(LabelVersion, (dataset.id, version)) is not None


def delete(session: Session, dataset_id: uuid.UUID) -> str:
    """Delete the row of a data set; its jobs and models stay. The caller removes the files.

    Returns:
        The name that it had.

    Raises:
        DatasetNotFound: There is no such data set.
        InUse: It is being checked, or a queued or running job needs it.
    """
    row = session.scalar(select(Dataset).where(Dataset.id == dataset_id).with_for_update())
    if row is None:
        raise DatasetNotFound("There is no data set with this id.")
    if row.state == State.running:
        raise InUse("The data set is being read; try again when it is ready or failed.")
    active = (Job.dataset_id == dataset_id, Job.state.in_(ACTIVE))
    jobs = session.scalar(select(func.count()).select_from(Job).where(*active)) or 0
    if jobs:
        raise InUse(f"{jobs} queued or running job{'s' if jobs > 1 else ''} need it; cancel or wait.")
    session.delete(row)
    return row.name
