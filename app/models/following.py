"""Which model `default` follows while nobody has pinned it, and why: decided once, when a model is published.

A model moves it unless it is a self-test, a baseline of a comparison, or its figures are below those of the model that
it would displace, like for like (docs/decisions/0013).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import case, select
from sqlalchemy.orm import Session

from app.db.tables import Job, Model

FIGURES = (  # by which models are compared, the one that says most first: in `metrics`, and as a sentence names it
    ("test_accuracy", "test accuracy"),
    ("clean_validation_accuracy", "accuracy on held-out images with clean labels"),
    ("noisy_validation_accuracy", "accuracy by the given labels of held-out images"),
)


class Verdict(NamedTuple):
    """Whether a model moves `default`, and why, in one sentence."""

    moves: bool
    reason: str


class Candidate(NamedTuple):
    """What a verdict depends on, of a model and the job that trained it.

    Attributes:
        dataset_id: None once the data set was deleted.
        label_version: Of the labels that it learned from; None where that is not known.
        metrics: As the model's row has them.
        is_self_test: Whether noise was injected.
    """

    dataset_id: uuid.UUID | None
    label_version: int | None
    metrics: Mapping[str, Any]
    is_self_test: bool


def decide(new: Candidate, present: Candidate | None, *, is_baseline: bool = False) -> Verdict:
    """Whether a new model moves `default`.

    Args:
        new: The model that is published.
        present: The model that `default` follows; None where there is none.
        is_baseline: Whether the new one was trained to be compared with another.
    """
    if is_baseline:
        return Verdict(False, "it was trained as a baseline of a comparison")
    if present is None:
        return Verdict(True, "it is the first model")
    if new.is_self_test and not present.is_self_test:
        return Verdict(False, "it was trained as a self-test, with noise added to its labels")
    if present.is_self_test and not new.is_self_test:
        return Verdict(True, "the model before it was trained as a self-test")
    if new.dataset_id is None or new.dataset_id != present.dataset_id:
        return Verdict(True, "it is the newest; the model before it learned from another data set")
    if new.label_version is None or new.label_version != present.label_version:
        return Verdict(True, "it is the newest; the model before it learned from another version of the labels")
    for name, words in FIGURES:
        own, other = _figure(new.metrics, name), _figure(present.metrics, name)
        if own is not None and other is not None:
            if own >= other:
                return Verdict(True, f"{words} {own:.4f}, {other:.4f} for the model before it")
            return Verdict(False, f"{words} {own:.4f}, below the {other:.4f} of the model that stays")
    return Verdict(True, "it is the newest; it and the model before it were measured in different ways")


def candidate(model: Mapping[str, Any]) -> Candidate:
    """What a verdict depends on, from the columns of a row in `model`."""
    metrics = model["metrics"]
    version = metrics.get("label_version")
    is_self_test = model["spec"].get("noise") is not None
    return Candidate(model["dataset_id"], version, metrics, is_self_test)


def present_model(session: Session) -> Model | None:
    """The model that `default` follows while it is not pinned; None where there is no model.

    It is the newest that moved it. Where none of them is left, a model that did not takes its place: self-tests come
    last, baselines before them. A model without its job may be a baseline's.
    """
    is_self_test = Model.spec["noise"].as_string().is_not(None)
    is_baseline = Job.id.is_(None) | Job.compared_with_id.is_not(None)
    rank = case((Model.moved_default, 0), (is_baseline, 2), else_=1)
    return session.scalar(
        select(Model)
        .outerjoin(Job, Job.id == Model.job_id)
        .order_by(is_self_test, rank, Model.created_at.desc(), Model.id.desc())
        .limit(1)
    )


def judge(session: Session, model: Mapping[str, Any], *, is_baseline: bool) -> Verdict:
    """The verdict on a model that is about to be published.

    Args:
        session: In whose transaction its row will be inserted.
        model: The columns of its row.
        is_baseline: As of `decide`.
    """
    before = present_model(session)
    columns = ("dataset_id", "metrics", "spec")
    present = None if before is None else candidate({name: getattr(before, name) for name in columns})
    return decide(candidate(model), present, is_baseline=is_baseline)


def passed_over(session: Session, present: Model) -> Model | None:
    """The newest model, where it is newer than the one that `default` follows and did not move it."""
    newer = (Model.created_at > present.created_at, Model.moved_default.is_(False))
    return session.scalar(select(Model).where(*newer).order_by(Model.created_at.desc(), Model.id.desc()).limit(1))


def _figure(metrics: Mapping[str, Any], name: str) -> float | None:
    """A figure of a model; of accuracies at several epochs that of the last, which is the model's own."""
    value = metrics.get(name)
    if isinstance(value, Mapping):
        value = value.get("last")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
