"""What a supervisor does with children that misbehave: the children are doubles without torch, all else is real."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app import work
from app.db import schema
from app.db.session import transaction
from app.db.tables import Dataset, Job, State
from app.errors import DatabaseUnavailable
from app.jobs import attempt
from tests.servers import eventually
from tests.tables import record_revision
from tests.worker.harness import ServiceHarness, alive, forked_children, opened
from worker.supervisor import supervise
from worker.supervisor.supervise import Supervisor


@pytest.fixture
def harness(tmp_path: Path, database_url: str) -> Iterator[ServiceHarness]:
    with opened(tmp_path, database_url, "redis://127.0.0.1:1/0", stall_s=1.0, heartbeat_s=0.2, drain_s=1.0) as harness:
        yield harness


class Run:
    """A supervisor that does queued work in a thread."""

    def __init__(self, harness: ServiceHarness, double: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(supervise.CHILD_MODULES, "jobs", f"tests.worker.doubles.{double}")
        self.supervisor = Supervisor(harness.settings, harness.engine, "jobs", "test")
        self.thread = threading.Thread(target=self.supervisor.run_queued_work)
        self.thread.start()

    def end(self) -> None:
        self.supervisor.draining.set()
        self.thread.join(20.0)
        assert not self.thread.is_alive()
        self.supervisor.close()


def queued(harness: ServiceHarness) -> uuid.UUID:
    dataset = uuid.uuid4()
    with transaction(harness.engine) as session:
        session.add(Dataset(id=dataset, name="set", upload={}, state=State.succeeded))
    return harness.submit(dataset)


def test_F19_a_job_that_always_kills_its_child_is_poison(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(harness)
    run = Run(harness, "crashing", monkeypatch)

    failed = harness.ended(job)
    run.end()

    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "poison"
    assert failed.attempt == 3
    assert harness.reasons(job) == ["child_killed"] * 3


def test_a_job_for_more_devices_than_there_are_is_left_to_others(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not block the queue, and an idle supervisor does not take it for work of its own."""
    dataset = uuid.uuid4()
    with transaction(harness.engine) as session:
        session.add(Dataset(id=dataset, name="set", upload={}, state=State.succeeded))
    large, small = harness.submit(dataset, gpus=2), harness.submit(dataset)
    run = Run(harness, "crashing", monkeypatch)

    assert harness.ended(small).state == "failed"
    run.thread.join(20.0)
    assert (harness.state(large), run.supervisor.has_work()) == ("queued", False)
    run.end()
    harness.settings = harness.settings.model_copy(update={"devices": "cpu,cpu"})
    both = Run(harness, "crashing", monkeypatch)
    assert harness.ended(large).state == "failed"
    both.end()


def test_a_child_that_does_not_advance_is_killed_and_counted(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(harness)
    run = Run(harness, "hanging", monkeypatch)
    harness.until(job, lambda row: row.attempts_without_progress >= 1)
    run.end()

    assert "stalled" in harness.reasons(job)


def test_a_child_that_reads_no_command_is_killed_when_cancelled(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(harness)
    run = Run(harness, "hanging", monkeypatch)
    harness.until(job, lambda row: row.state == State.running)
    with transaction(harness.engine) as session:
        work.request_cancel(session, Job, job)

    assert harness.ended(job, 10.0).state == "cancelled"
    run.end()


def test_a_drain_requeues_what_runs_and_does_not_count(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(harness)
    run = Run(harness, "cooperative", monkeypatch)
    harness.until(job, lambda row: row.state == State.running)
    run.end()

    row = harness.job(job)
    assert (row.state, row.attempts_without_progress) == ("queued", 0)
    assert harness.reasons(job) == ["drained"]


def test_the_end_of_a_preforked_child_disturbs_nothing(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of the running child is renewed all the same, and the next job gets a child."""
    job = queued(harness)
    run = Run(harness, "cooperative", monkeypatch)
    harness.until(job, lambda row: row.state == State.running)
    preforked = eventually(lambda: forked_children(os.getpid(), "denll-preforked"), what="a preforked child")[0]
    os.kill(preforked, signal.SIGKILL)
    eventually(lambda: not alive(preforked), what="its end")
    killed = harness.job(job).heartbeat_at
    assert killed is not None
    harness.until(job, lambda row: row.heartbeat_at is not None and row.heartbeat_at > killed + timedelta(seconds=0.5))
    run.end()
    assert harness.reasons(job) == ["drained"]

    after = Run(harness, "cooperative", monkeypatch)
    harness.until(job, lambda row: row.state == State.running)
    after.end()


def test_a_lost_claim_ends_the_child_and_writes_nothing(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(harness)
    run = Run(harness, "hanging", monkeypatch)
    first = harness.until(job, lambda row: row.state == State.running)
    with transaction(harness.engine) as session:
        assert attempt.requeue(session, job, first.fence, counts=False, limit=3, reason="test") == "queued"
        second = attempt.claim(session, "another", 60.0)
    run.end()

    assert second is not None
    row = harness.job(job)
    assert (row.state, row.fence, row.lease_owner) == ("running", second.fence, "another")
    assert harness.reasons(job) == ["test"]


@pytest.mark.alone
def test_F10_a_child_is_stopped_before_its_lease_ends_when_the_database_stays_away(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written then; whoever reaches the database after the lease requeues the job."""
    job = queued(harness)
    settings = harness.settings = harness.settings.model_copy(update={"stall_s": 60.0, "database_grace_s": 1.5})
    run = Run(harness, "cooperative", monkeypatch)
    running = harness.until(job, lambda row: row.state == State.running)
    (pid, *_) = eventually(lambda: forked_children(os.getpid()), what="the child")
    lost_at = time.monotonic()

    def away(engine: Engine, **_: object) -> None:
        raise DatabaseUnavailable("The test made it unavailable.")

    monkeypatch.setattr(supervise, "transaction", away)
    eventually(lambda: not alive(pid), seconds=settings.lease_s, what="the end of the child")
    assert time.monotonic() - lost_at < settings.lease_s
    run.end()
    row = harness.job(job)
    assert (row.state, row.fence) == ("running", running.fence)
    eventually(lambda: reaped(harness), seconds=10.0, what="the end of the lease")
    assert harness.state(job) == "queued"


def test_F31_under_a_schema_of_another_version_a_job_is_stopped_and_nothing_is_written(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "CHECK_S", 0.0)
    job = queued(harness)
    waiting = queued(harness)
    run = Run(harness, "cooperative", monkeypatch)
    running = harness.until(job, lambda row: row.state == State.running)
    (pid, *_) = eventually(lambda: forked_children(os.getpid()), what="the child")
    record_revision(harness.engine, "of a later version")
    eventually(lambda: not alive(pid), what="the end of the child")
    run.thread.join(20.0)
    with pytest.raises(DatabaseUnavailable, match="of a later version"):
        reaped(harness)
    assert not run.supervisor.has_work()
    run.end()

    record_revision(harness.engine, schema.REVISION)
    row = harness.job(job)
    assert (row.state, row.fence, row.lease_owner) == ("running", running.fence, "test")
    assert harness.state(waiting) == "queued"
    eventually(lambda: reaped(harness), seconds=10.0, what="the end of the lease")
    after = Run(harness, "cooperative", monkeypatch)
    harness.until(job, lambda row: row.state == State.running)
    after.end()


def reaped(harness: ServiceHarness) -> int:
    with transaction(harness.engine) as session:
        return attempt.reap(session, 3)


def test_DEG5_with_too_little_disk_nothing_is_claimed_until_there_is_space(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(harness)
    monkeypatch.setitem(supervise.CHILD_MODULES, "jobs", "tests.worker.doubles.crashing")
    full = harness.settings.model_copy(update={"min_free_bytes": 2**62})
    supervisor = Supervisor(full, harness.engine, "jobs", "test")
    supervisor.run_queued_work()
    supervisor.close()

    assert (harness.state(job), harness.job(job).attempt, supervisor.has_work()) == ("queued", 0, False)

    run = Run(harness, "crashing", monkeypatch)
    assert harness.ended(job).attempt == 3
    run.end()
