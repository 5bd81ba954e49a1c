"""/datasets/{id}/images/{index}/history: how versions have changed the label of one image."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import NamedTuple

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.datasets import contents, label_service, service
from app.datasets.label_issues import ImageAction
from app.datasets.label_routes import Source
from app.datasets.routes import ImageIndex
from app.db.tables import Dataset, LabelVersion
from app.errors import ImageNotFound, NotReady
from app.http.access import READ
from app.http.deps import Files, ReadSession
from app.http.openapi import problems
from app.http.routing import Router
from app.storage import Storage
from ml.formats import dataset_index, label_versions

router = Router(tags=["labels"])
VERSIONS = 100  # only the newest ones are searched for changes


class ImageLabelState(BaseModel):
    version: int = Field(description="The version that set this label; 1 is the upload")
    label: str | None
    action: ImageAction
    source: Source
    author: str | None = Field(description="Name of the API key")
    note: str
    created_at: datetime


class ImageHistory(BaseModel):
    """The history of the label of one image."""

    index: int
    path: str
    changes: list[ImageLabelState] = Field(description="Newest first")


class LabelState(NamedTuple):
    """The label of an image as a version has set it; `row` is None for the uploaded labels."""

    version: int
    label: str | None
    status: str
    row: LabelVersion | None


def find_states(session: Session, files: Storage, dataset: Dataset, image: int) -> list[LabelState]:
    """The versions that have changed an image's label, newest first, and last the label before them.

    Args:
        session: Reads the rows of the newest `VERSIONS` versions.
        files: Has the data set.
        dataset: A ready data set.
        image: Number of one of its images.
    """
    rows = label_service.list_versions(session, dataset.id, below=dataset.label_version + 1, limit=VERSIONS)
    folder = files.fetch_dataset(dataset.id, *(row.version for row in rows))
    states: list[LabelState] = []
    for row in (None, *reversed(rows)):
        version = label_versions.UPLOADED if row is None else row.version
        label, status = dataset_index.read_label(folder, image, version)
        if not states or (label, status) != (states[-1].label, states[-1].status):
            states.append(LabelState(version, label, status, row))
    return states[::-1]


@router.get(
    "/datasets/{dataset_id}/images/{index}/history",
    dependencies=[READ],
    response_model=ImageHistory,
    responses=problems(NotReady, ImageNotFound),
)
def history(session: ReadSession, files: Files, dataset_id: uuid.UUID, index: ImageIndex) -> ImageHistory:
    """The versions that have changed the label of an image, newest first."""
    dataset = service.get_ready(session, dataset_id)
    image = contents.find_image(files.fetch_dataset(dataset.id), index)
    states = find_states(session, files, dataset, image.number)
    return ImageHistory(index=image.number, path=image.path, changes=[state_out(state, dataset) for state in states])


def state_out(state: LabelState, dataset: Dataset) -> ImageLabelState:
    """The representation of a state of an image's label."""
    uploaded_at = dataset.finished_at or dataset.created_at
    row = state.row
    return ImageLabelState.model_validate(
        {
            "version": state.version,
            "label": state.label,
            "action": state.status,
            "source": row.source if row else "upload",
            "author": row.author if row else None,
            "note": row.note if row else "",
            "created_at": row.created_at if row else uploaded_at,
        }
    )
