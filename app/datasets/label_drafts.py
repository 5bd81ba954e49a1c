"""Drafts of edits of labels: what somebody has reviewed so far, kept until it is published as a version.

Each edit is checked against the newest labels when it is made, and all of them again when they are published. Edits
have numbers that only grow; those that were sent together are a step, and steps are undone from the last one on.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, delete, func, insert, select, update
from sqlalchemy.orm import Session

from app.datasets import label_edits, service
from app.datasets.label_edits import MAX_EDITS
from app.db.clock import now
from app.db.tables import Dataset, LabelDraft, LabelDraftEdit
from app.errors import Fault, TooLarge
from app.http import routing
from app.storage import Storage
from ml.formats import dataset_index, label_versions
from ml.formats.label_versions import Edit


class DraftCounts(NamedTuple):
    """How many images a draft edits, by what it makes of them."""

    relabelled: int
    confirmed: int
    excluded: int


def find(session: Session, dataset_id: uuid.UUID, owner: str) -> LabelDraft | None:
    """The draft of a caller; None while there is none."""
    return session.get(LabelDraft, (dataset_id, owner))


def begin(dataset: Dataset, owner: str) -> LabelDraft:
    """An empty draft, which is not in a session yet."""
    return LabelDraft(dataset_id=dataset.id, owner=owner, label_version=dataset.label_version, sequence=0)


def lock(session: Session, dataset_id: uuid.UUID, owner: str, if_match: str | None) -> tuple[Dataset, LabelDraft]:
    """A ready data set and the caller's draft of its labels, begun if there is none; nobody else changes either now.

    Args:
        if_match: The client's If-Match: the number of the last edit that it knows.

    Raises:
        DatasetNotFound, NotReady: There is no such data set.
        PreconditionFailed: The draft has other edits.
    """
    session.execute(select(Dataset.id).where(Dataset.id == dataset_id).with_for_update())
    dataset = service.get_ready(session, dataset_id)
    draft = find(session, dataset_id, owner)
    if draft is None:
        draft = begin(dataset, owner)
        session.add(draft)
        session.flush()
    routing.require_number(if_match, draft.sequence, "The last edit of the draft")
    return dataset, draft


def append(session: Session, files: Storage, dataset: Dataset, draft: LabelDraft, edits: Sequence[Edit]) -> None:
    """Add a step to a draft; of several edits of one image the last counts.

    Args:
        edits: Of images, not of classes; `old` is the label by the newest version.

    Raises:
        InvalidRequest: An edit does not fit.
        LabelsMovedOn: Images have another label than `old` says.
        TooLarge: The draft would have more than `MAX_EDITS` edits.
    """
    _check(files, dataset, edits)
    of_draft = _of(draft)
    rows = session.scalar(select(func.count(LabelDraftEdit.sequence)).where(*of_draft)) or 0
    if rows + len(edits) > MAX_EDITS:
        raise TooLarge(f"A draft has at most {MAX_EDITS} edits: publish it and go on with another.")
    first = draft.sequence + 1
    values = [
        {
            "dataset_id": draft.dataset_id,
            "owner": draft.owner,
            "sequence": sequence,
            "step": first,
            "image": edit.image,
            "action": edit.action,
            "old": edit.old,
            "new": edit.new,
        }
        for sequence, edit in enumerate(edits, first)
    ]
    # Into the table, not through the mapper, which would copy every row.
    session.execute(insert(LabelDraftEdit.__table__), values)  # type: ignore[arg-type]
    _advance(session, draft, len(edits))


def undo(session: Session, draft: LabelDraft) -> dict[int, LabelDraftEdit | None]:
    """Take the last step back.

    Returns:
        Of each of its images, by number, the edit that counts now, None without one; empty where the draft has no edit.
    """
    of_draft = _of(draft)
    step = session.scalar(select(func.max(LabelDraftEdit.step)).where(*of_draft))
    images = select(LabelDraftEdit.image).where(*of_draft, LabelDraftEdit.step == step)
    undone: dict[int, LabelDraftEdit | None] = dict.fromkeys(session.scalars(images.order_by(LabelDraftEdit.image)))
    before = select_current(draft, LabelDraftEdit.step != step).where(LabelDraftEdit.image.in_(images))
    undone |= {row.image: row for row in session.scalars(before)}
    session.execute(
        delete(LabelDraftEdit)
        .where(*of_draft, LabelDraftEdit.step == step)
        .execution_options(synchronize_session=False)
    )
    if undone:
        _advance(session, draft, 1)  # another state than before, for If-Match
    return undone


def select_current(draft: LabelDraft, *conditions: ColumnElement[bool]) -> Select[LabelDraftEdit]:
    """The edits that count, in the order of their numbers: the last of each image, among those that fulfil these."""
    of_draft = (*_of(draft), *conditions)
    last = select(func.max(LabelDraftEdit.sequence)).where(*of_draft).group_by(LabelDraftEdit.image)
    statement: Select[LabelDraftEdit] = select(LabelDraftEdit).where(*of_draft, LabelDraftEdit.sequence.in_(last))
    return statement.order_by(LabelDraftEdit.sequence)


def count(session: Session, draft: LabelDraft) -> DraftCounts:
    """How many images the draft edits."""
    current = select_current(draft).order_by(None).subquery()
    rows = session.execute(select(current.c.action, func.count()).group_by(current.c.action))
    by_action: dict[str, int] = {action: images for action, images in rows}  # noqa: C416  # rows are not tuples to mypy
    return DraftCounts(*(by_action.get(action, 0) for action in label_versions.IMAGE_ACTIONS))


def _of(draft: LabelDraft) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return LabelDraftEdit.dataset_id == draft.dataset_id, LabelDraftEdit.owner == draft.owner


def _advance(session: Session, draft: LabelDraft, edits: int) -> None:
    of_draft = (LabelDraft.dataset_id == draft.dataset_id, LabelDraft.owner == draft.owner)
    session.execute(update(LabelDraft).where(*of_draft).values(sequence=LabelDraft.sequence + edits, updated_at=now()))
    session.refresh(draft)


def _check(files: Storage, dataset: Dataset, edits: Sequence[Edit]) -> None:
    folder = files.fetch_dataset(dataset.id, dataset.label_version)
    numbers = [edit.image for edit in edits if edit.image is not None]
    labels = dataset_index.read_labels(folder, numbers, dataset.label_version)
    classes = set(dataset_index.read_classes(folder, dataset.label_version))
    faults: list[Fault] = []
    for number, edit in enumerate(edits):
        fault: tuple[str, str] | None
        if edit.image is None:
            fault = "class_edit", "A draft has edits of images alone."
        elif edit.image not in labels:
            fault = "unknown_image", f"The data set has no image {edit.image}."
        else:
            fault = label_versions.check_image_edit(edit, labels[edit.image], classes)
        if fault is not None:
            faults.append(Fault(f"/edits/{number}", *fault))
    label_edits.refuse(faults)
