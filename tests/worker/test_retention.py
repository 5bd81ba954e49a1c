"""What retention deletes on both databases, and what it never does."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.datasets import label_service, service
from app.db import audit
from app.db.audit import Actor
from app.db.clock import now
from app.db.session import transaction
from app.db.tables import AuditEntry, Dataset, Job, LabelVersion, Model, State
from app.errors import LabelVersionNotFound
from app.jobs import service as jobs
from app.notifier import Notifier
from app.settings import Settings
from ml.formats import dataset_index, label_versions
from tests.worker.harness import ServiceHarness, opened
from tests.worker.test_backup import edit_labels
from worker import retention
from worker.dispatcher import Dispatcher

AGE_S = 100.0
ALL = {"retain_jobs_s": AGE_S, "retain_job_files_s": AGE_S, "retain_label_versions_s": AGE_S, "retain_audit_s": AGE_S}


@pytest.fixture
def harness(tmp_path: Path, database_url: str) -> Iterator[ServiceHarness]:
    folder = tmp_path / "service"
    folder.mkdir()
    with opened(folder, database_url, "redis://127.0.0.1:1/0") as harness:
        yield harness


def job(harness: ServiceHarness, state: State = State.succeeded, age_s: float = 2 * AGE_S, **columns: Any) -> uuid.UUID:
    """A job with a file, in this state since so long."""
    job_id = uuid.uuid4()
    ended = now(-age_s) if state not in (State.queued, State.running) else None
    with transaction(harness.engine) as session:
        session.add(Job(id=job_id, state=state, finished_at=ended, request={}, spec={}, **columns))
    folder = harness.files.attempt(job_id, 1) / "artifacts"
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text("{}")
    return job_id


def model_of(harness: ServiceHarness, job_id: uuid.UUID | None, **columns: Any) -> None:
    fixed = {"method": "ce", "network": "small", "classes": [], "digest": "d", "size_bytes": 1, "spec": {}}
    with transaction(harness.engine) as session:
        session.add(Model(**fixed, job_id=job_id, **({"metrics": {}} | columns)))


def delete(harness: ServiceHarness, **periods: float) -> retention.Deleted:
    settings = harness.settings.model_copy(update=periods)
    return retention.delete_batch(settings, harness.engine, harness.files)


def ids(harness: ServiceHarness, column: Any) -> set[Any]:
    with transaction(harness.engine, read_only=True) as session:
        return set(session.scalars(select(column)))


def test_by_default_nothing_is_deleted(harness: ServiceHarness) -> None:
    old = job(harness, age_s=1e8)
    assert not any(delete(harness))
    assert ids(harness, Job.id) == {old}


def test_old_jobs_go_with_their_files_unless_something_needs_them(harness: ServiceHarness) -> None:
    old = [job(harness, state) for state in (State.failed, State.cancelled, State.succeeded)]
    with_model = job(harness)
    model_of(harness, with_model)
    compared, repeated = job(harness), job(harness)
    remaining = {
        with_model,
        compared,
        repeated,
        job(harness, age_s=AGE_S / 2),
        job(harness, State.queued, compared_with_id=compared),
        job(harness, State.running, retrain_of_id=repeated, lease_expires_at=now(1000.0)),
    }

    assert delete(harness, retain_jobs_s=AGE_S) == (len(old), 0, 0, 0)

    assert ids(harness, Job.id) == remaining
    assert {path.name for path in (harness.files.root / "jobs").iterdir()} == {str(one) for one in remaining}
    with transaction(harness.engine, read_only=True) as session:
        entries = session.execute(select(AuditEntry.actor, AuditEntry.action, AuditEntry.object)).all()
    assert {tuple(entry) for entry in entries} == {("retention", "job.delete", f"/jobs/{one}") for one in old}


def test_files_of_a_finished_job_go_and_it_and_its_model_stay(harness: ServiceHarness) -> None:
    done, failed = job(harness), job(harness, State.failed, checkpoint_step=7, checkpoint_path="x")
    running, young = job(harness, State.running, lease_expires_at=now(1000.0)), job(harness, age_s=AGE_S / 2)
    model_of(harness, done)

    assert delete(harness, retain_job_files_s=AGE_S).job_files == 2
    assert delete(harness, retain_job_files_s=AGE_S).job_files == 0  # once each

    assert {path.name for path in (harness.files.root / "jobs").iterdir()} == {str(running), str(young)}
    assert harness.job(done).files_deleted_at is not None
    assert harness.job(running).files_deleted_at is None
    with transaction(harness.engine) as session:
        session.add(Dataset(id=(data := uuid.uuid4()), name="d", upload={}, state=State.succeeded))
        session.flush()
        session.get_one(Job, failed).dataset_id = data
        session.flush()
        retried = jobs.retry(session, failed, scratch=False, settings=harness.settings)
        assert (retried.checkpoint_step, retried.files_deleted_at) == (None, None)


def test_old_versions_of_labels_go_unless_they_are_the_newest_or_learned_from(harness: ServiceHarness) -> None:
    dataset_id = harness.dataset()
    for image in range(0, 12, 2):
        edit_labels(harness, dataset_id, image)  # versions 2 to 7
    job(harness, State.queued, dataset_id=dataset_id, label_version=3)
    model_of(harness, None, dataset_id=dataset_id, metrics={"label_version": 5})
    with transaction(harness.engine) as session:
        for version in session.scalars(select(LabelVersion).where(LabelVersion.version != 6)):
            version.created_at = now(-2 * AGE_S)
    folder = harness.files.dataset(dataset_id)
    uploaded = dataset_index.uploaded_labels(folder)
    before = label_versions.read(folder, 7, uploaded)

    assert delete(harness, retain_label_versions_s=AGE_S).label_versions == 2

    assert ids(harness, LabelVersion.version) == {3, 5, 6, 7}
    assert {path.stem for path in (folder / label_versions.FOLDER).iterdir()} == {"3", "5", "6", "7"}
    assert label_versions.read(folder, 7, uploaded) == before
    with transaction(harness.engine, read_only=True) as session:
        dataset = service.get(session, dataset_id)
        assert label_service.check_version(session, dataset, 1) == 1
        with pytest.raises(LabelVersionNotFound, match="age"):
            label_service.check_version(session, dataset, 2)
    edit_labels(harness, dataset_id, 14)  # and editing goes on
    assert max(ids(harness, LabelVersion.version)) == 8


def test_old_audit_entries_go(harness: ServiceHarness) -> None:
    with transaction(harness.engine) as session:
        for name in ("old", "young"):
            audit.record(session, Actor(name), "key.create", "/keys/x")
        session.flush()
        session.scalars(select(AuditEntry).where(AuditEntry.actor == "old")).one().created_at = now(-2 * AGE_S)

    assert delete(harness, retain_audit_s=AGE_S).audit_entries == 1
    assert ids(harness, AuditEntry.actor) == {"young"}


def test_a_round_is_bounded_and_the_dispatcher_does_it(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for _ in range(5):
        job(harness)
    settings = Settings(**{**harness.settings.model_dump(), **ALL})
    notifier = Notifier(settings)
    Dispatcher(settings, harness.engine, notifier).run_once()
    notifier.close()

    assert len(ids(harness, Job.id)) == 3


def test_a_dry_run_lists_what_would_go_and_deletes_nothing(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = job(harness)
    dataset_id = harness.dataset()
    for image in (0, 2):
        edit_labels(harness, dataset_id, image)
    with transaction(harness.engine) as session:
        session.get_one(LabelVersion, (dataset_id, 2)).created_at = now(-2 * AGE_S)
        audit.record(session, Actor("old"), "key.create", "/keys/x")
        session.flush()
        session.scalars(select(AuditEntry)).one().created_at = now(-2 * AGE_S)
    settings = harness.settings.model_copy(update=ALL)
    monkeypatch.setattr(retention, "current", lambda: settings)

    retention.main(["--dry-run"])
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert listed == [
        {"action": "job.delete", "object": f"/jobs/{old}"},
        {"action": "job.delete_files", "object": f"/jobs/{old}"},
        {"action": "labels.delete", "object": f"/datasets/{dataset_id}/labels/2"},
        {"action": "audit.delete", "entries": 1},
    ]
    assert ids(harness, Job.id) == {old}
    retention.main([])
    assert ids(harness, Job.id) == set()
