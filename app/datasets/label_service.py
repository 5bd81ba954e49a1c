"""Makes, lists and compares versions of a data set's labels. Their files: `ml.formats.label_versions`.

The data set's row is locked while a version is made, so that versions follow one another. The file is complete before
the transaction that inserts the version's row and moves the data set to it: a crash leaves whole versions only, and a
file without a row is replaced by the next version.
"""

from __future__ import annotations

import collections
import functools
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets import label_edits, label_issues, service
from app.datasets.label_edits import AcceptedIssues, ConsensusRule, IssueFilter
from app.db.tables import Dataset, Job, LabelVersion
from app.errors import (
    Fault,
    InvalidRequest,
    JobNotFound,
    LabelVersionNotFound,
)
from app.http import routing
from app.storage import Storage
from ml.formats import dataset_index, image_query, image_results, label_versions, votes
from ml.formats.image_query import ImageMatch, ImageQuery
from ml.formats.label_versions import Edit, Labels, UploadedLabels
from ml.formats.votes import Consensus


class Proposal(NamedTuple):
    """Labels of a version that is not written yet.

    Attributes:
        dataset: The data set's row, locked unless it is only a preview.
        uploaded: Its uploaded labels.
        labels: The new labels.
        edits: What makes them of the newest version's.
        skipped: Flags that were not accepted, counted by reason.
        source: edits, accept, consensus or revert.
        origin: What was accepted, the rule of the consensus, or the version reverted to.
    """

    dataset: Dataset
    uploaded: UploadedLabels
    labels: Labels
    edits: Sequence[Edit]
    skipped: Mapping[str, int]
    source: str
    origin: dict[str, Any] | None


def check_version(session: Session, dataset: Dataset, version: int) -> int:
    """The same number; LabelVersionNotFound unless the data set has this version."""
    if not 1 <= version <= dataset.label_version:
        raise LabelVersionNotFound(f"The newest version of this data set's labels is {dataset.label_version}.")
    if not service.has_version(session, dataset, version):
        raise LabelVersionNotFound("This version was deleted because of its age.")
    return version


def resolve_version(session: Session, dataset: Dataset, version: int | None) -> int:
    """The version that a client has named, or the newest; raises as `check_version` does."""
    return dataset.label_version if version is None else check_version(session, dataset, version)


def propose_edits(
    session: Session,
    files: Storage,
    dataset_id: uuid.UUID,
    edits: Sequence[Edit],
    *,
    parent: int | None,
    if_match: str | None,
    lock: bool,
) -> Proposal:
    """The labels that edits of the newest version make.

    Args:
        parent: The version that the client has seen; edits whose `from` still holds apply to a newer one as well.
        if_match: The client's If-Match: the edits apply to this version or not at all.
        lock: Whether the version will be written in this transaction.

    Raises:
        DatasetNotFound, NotReady, LabelVersionNotFound: There is no such data set or parent.
        PreconditionFailed: The newest version is not that of `if_match`.
        InvalidRequest: An edit does not fit.
        LabelsMovedOn: Images have another label than `from` says.
    """
    dataset = _ready(session, dataset_id, parent, if_match, lock=lock)
    uploaded, labels = _read_newest(files, dataset)
    _apply(labels, edits, dataset.label_version + 1, uploaded)
    return Proposal(dataset, uploaded, labels, edits, {}, "edits", None)


def propose_acceptance(
    session: Session,
    files: Storage,
    dataset_id: uuid.UUID,
    accepted: AcceptedIssues,
    *,
    parent: int | None,
    if_match: str | None,
    lock: bool,
) -> Proposal:
    """The labels that accepting the flags of a job makes; other arguments and errors as for `propose_edits`.

    Args:
        accepted: The job, a finished training on this data set, and which of its flags.

    Raises:
        JobNotFound, ArtifactNotFound: There is no such job, or it has no ranking.
        InvalidRequest: The job trained on another data set, or on labels with injected noise.
    """
    dataset = _ready(session, dataset_id, parent, if_match, lock=lock)
    job = session.get(Job, accepted.job)
    if job is None:
        raise JobNotFound("There is no job with this id.")
    for wrong, code, detail in (
        (job.dataset_id != dataset_id, "other_dataset", "This job is not of this data set."),
        (
            bool(job.spec.get("noise")),
            "injected_noise",
            "This job ranked labels with injected noise, not the real ones.",
        ),
        (
            bool((job.metrics or {}).get("noise_rate_withheld")) and accepted.where.label_score_below is None,
            "too_weak",
            "This job's model is too weak to accept all of its flags: say label_score_below, or train a better one.",
        ),
    ):
        if wrong:
            raise InvalidRequest(detail, errors=[Fault("/accept/job", code, detail)])
    results = label_issues.find_results(files, accepted.job)
    meant = image_query.find(None, _query(accepted.where), results=results)
    uploaded, labels = _read_newest(files, dataset)
    edits, skipped = _accepted(meant, image_results.read_classes(results), labels, uploaded, accepted.action)
    _apply(labels, edits, dataset.label_version + 1, uploaded)
    origin = accepted.model_dump(mode="json", by_alias=True)
    return Proposal(dataset, uploaded, labels, edits, skipped, "accept", origin)


def propose_consensus(
    session: Session,
    files: Storage,
    dataset_id: uuid.UUID,
    consensus: ConsensusRule,
    *,
    parent: int | None,
    if_match: str | None,
    lock: bool,
) -> Proposal:
    """The labels that annotators agree on; other arguments and errors as for `propose_edits`.

    Images that were confirmed or excluded stay as they are. A label that is no class yet becomes one; classes that
    edits have renamed or merged have their new names.

    Args:
        consensus: The rule, how sure it must be, and whether it goes before labels that edits have changed.

    Raises:
        InvalidRequest: The data set has no votes.
    """
    dataset = _ready(session, dataset_id, parent, if_match, lock=lock)
    agreed = votes.read_consensus(files.fetch_dataset(dataset.id) / dataset_index.INDEX_FILE)
    if not agreed:
        detail = "The data set has no votes: upload it with annotator_columns."
        raise InvalidRequest(detail, errors=[Fault("/consensus", "no_votes", detail)])
    uploaded, labels = _read_newest(files, dataset)
    edits, skipped = _edits_of_consensus(agreed, labels, uploaded, consensus)
    _apply(labels, edits, dataset.label_version + 1, uploaded)
    return Proposal(dataset, uploaded, labels, edits, skipped, "consensus", consensus.model_dump(mode="json"))


def propose_revert(
    session: Session, files: Storage, dataset_id: uuid.UUID, version: int, *, if_match: str | None
) -> Proposal:
    """The labels of an earlier version again; raises as `propose_edits` does."""
    dataset = _ready(session, dataset_id, version, if_match, lock=True)
    folder = files.fetch_dataset(dataset.id, version)
    uploaded = dataset_index.uploaded_labels(folder)
    labels = label_versions.read(folder, version, uploaded)
    return Proposal(dataset, uploaded, labels, (), {}, "revert", {"version": version})


def write(session: Session, files: Storage, proposal: Proposal, *, author: str | None, note: str) -> LabelVersion:
    """Make the proposed labels the newest version.

    Args:
        author: Name of the API key.
        note: Why.

    Raises:
        InsufficientStorage: Too little disk is free.
        InvalidRequest: Nothing would change.
    """
    dataset, labels = proposal.dataset, proposal.labels
    if proposal.source != "revert" and not proposal.edits:
        by_consensus = proposal.source == "consensus"
        nothing = "all labels are what annotators agree on" if by_consensus else "none is flagged"
        skipped = ", ".join(f"{count} {reason}" for reason, count in proposal.skipped.items()) or nothing
        detail = f"No label is left to change: {skipped}."
        pointer = "/consensus" if by_consensus else "/accept/where"
        raise InvalidRequest(detail, errors=[Fault(pointer, "nothing_to_change", detail)])
    version = dataset.label_version + 1
    with files.new_labels(dataset.id, version) as folder:
        label_versions.write(folder, version, labels, proposal.uploaded)
    row = LabelVersion(
        dataset_id=dataset.id,
        version=version,
        parent=dataset.label_version,
        source=proposal.source,
        origin=proposal.origin,
        author=author,
        note=note,
        edits=len(proposal.edits),
        counts=count_statuses(labels),
        digest=label_versions.digest(labels, proposal.uploaded),
    )
    session.add(row)
    dataset.label_version = version
    session.flush()
    session.refresh(row)
    return row


def count_statuses(labels: Labels) -> dict[str, int]:
    """How many images edits have relabelled, confirmed and excluded."""
    counts = collections.Counter[str](label.status for label in labels.images.values())
    return {status: counts[status] for status in label_versions.STATUSES if status != "unreviewed"}


@functools.lru_cache(maxsize=512)
def uploaded_digest(folder: Path) -> str:
    """The digest of the uploaded labels of the data set in a folder. Cached: they never change."""
    uploaded = dataset_index.uploaded_labels(folder)
    return label_versions.digest(Labels.of_upload(uploaded), uploaded)


def list_versions(session: Session, dataset_id: uuid.UUID, *, below: int, limit: int) -> list[LabelVersion]:
    """Rows of the newest versions with a lower number than `below`; the uploaded labels have none."""
    of_dataset = (LabelVersion.dataset_id == dataset_id, LabelVersion.version < below)
    return list(
        session.scalars(select(LabelVersion).where(*of_dataset).order_by(LabelVersion.version.desc()).limit(limit))
    )


def _ready(session: Session, dataset_id: uuid.UUID, parent: int | None, if_match: str | None, *, lock: bool) -> Dataset:
    """The data set's row, locked if asked for; raises as `propose_edits` does."""
    if lock:
        session.execute(select(Dataset.id).where(Dataset.id == dataset_id).with_for_update())
    dataset = service.get_ready(session, dataset_id)
    if parent is not None:
        check_version(session, dataset, parent)
    routing.require_number(if_match, dataset.label_version, "The newest version of the labels")
    return dataset


def _read_newest(files: Storage, dataset: Dataset) -> tuple[UploadedLabels, Labels]:
    folder = files.fetch_dataset(dataset.id, dataset.label_version)
    uploaded = dataset_index.uploaded_labels(folder)
    return uploaded, label_versions.read(folder, dataset.label_version, uploaded)


def _apply(labels: Labels, edits: Sequence[Edit], version: int, uploaded: UploadedLabels) -> None:
    """Apply edits, or raise for those that do not fit."""
    faults = labels.apply(edits, version, uploaded)
    label_edits.refuse([Fault(f"/edits/{fault.position}", fault.code, fault.detail) for fault in faults])


def _query(where: IssueFilter) -> ImageQuery:
    return ImageQuery(
        judged_label=where.class_,
        predicted=where.predicted_label,
        is_label_issue=where.is_label_issue,
        score_below=where.label_score_below,
        order="score",
    )


def _accepted(
    meant: Sequence[ImageMatch], classes: Sequence[str], labels: Labels, uploaded: UploadedLabels, action: str
) -> tuple[list[Edit], dict[str, int]]:
    """The edits that accept flags; and how many flags cannot be accepted, by reason. `classes` are the job's."""
    edits: list[Edit] = []
    skipped: collections.Counter[str] = collections.Counter()
    for match in meant:
        result = match.result
        assert result is not None
        assert result.given_label is not None
        assert result.predicted is not None, "what has a label score was ranked"
        label, status = labels.label_of(result.image, uploaded), labels.status_of(result.image)
        suggested = classes[result.predicted]
        if status in ("confirmed", "excluded"):
            skipped[f"{status} already"] += 1
        elif label != classes[result.given_label]:
            skipped["relabelled since"] += 1
        elif action == "exclude":
            edits.append(Edit("exclude", result.image, label, None))
        elif suggested == label:
            skipped["with no other label suggested"] += 1
        elif suggested not in labels.classes:
            skipped["of a class that is gone"] += 1
        else:
            edits.append(Edit("relabel", result.image, label, suggested))
    return edits, dict(skipped)


def _edits_of_consensus(
    agreed: Sequence[Consensus], labels: Labels, uploaded: UploadedLabels, consensus: ConsensusRule
) -> tuple[list[Edit], dict[str, int]]:
    """The edits that make what annotators agree on the labels; and how many differ and are not changed, by reason."""
    edits: list[Edit] = []
    skipped: collections.Counter[str] = collections.Counter()
    changeable = {"unreviewed", "relabelled"} if consensus.include_relabelled else {"unreviewed"}
    known = set(labels.classes)
    added: set[str] = set()
    for of_image in agreed:
        voted, confidence = of_image.by(consensus.rule)
        target = labels.renamed.get(voted, voted)
        label, status = labels.label_of(of_image.image, uploaded), labels.status_of(of_image.image)
        if target == label:
            continue
        if status not in changeable:
            skipped[f"{status} already"] += 1
        elif confidence < consensus.min_confidence:
            skipped["not agreed on surely enough"] += 1
        else:
            added |= {target} - known
            edits.append(Edit("relabel", of_image.image, label, target))
    return [*(Edit("add_class", None, None, name) for name in sorted(added)), *edits], dict(skipped)
