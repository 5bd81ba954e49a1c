"""What a supervisor does with children that misbehave; the children are doubles without torch, the rest is real."""

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
from app.db.session import transaction
from app.db.tables import Dataset, Job, State
from app.errors import DatabaseUnavailable
from app.jobs import attempt
from tests.servers import eventually
from tests.worker.harness import ServiceHarness, alive, opened, zygotes_children
from worker.supervisor import supervise as corridor
from worker.supervisor.supervise import Supervisor


@pytest.fixture
def house(tmp_path: Path, database_url: str) -> Iterator[ServiceHarness]:
    with opened(tmp_path, database_url, "redis://127.0.0.1:1/0", stall_s=1.0, heartbeat_s=0.2, drain_s=1.0) as made:
        yield made


class Run:
    """A supervisor that answers one bell in a thread."""

    def __init__(self, house: ServiceHarness, double: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(corridor.CHILDREN, "jobs", f"tests.worker.doubles.{double}")
        self.supervisor = Supervisor(house.settings, house.engine, "jobs", "test")
        self.thread = threading.Thread(target=self.supervisor.answer)
        self.thread.start()

    def end(self) -> None:
        self.supervisor.draining.set()
        self.thread.join(20.0)
        assert not self.thread.is_alive()
        self.supervisor.close()


def queued(house: ServiceHarness) -> uuid.UUID:
    dataset = uuid.uuid4()
    with transaction(house.engine) as session:
        session.add(Dataset(id=dataset, name="set", upload={}, state=State.succeeded))
    return house.submit(dataset)


def test_F19_a_job_that_always_kills_its_child_is_poison(
    house: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(house)
    run = Run(house, "suicidal", monkeypatch)

    failed = house.ended(job)
    run.end()

    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "poison"
    assert failed.attempt == 3
    assert house.reasons(job) == ["child_killed"] * 3


def test_a_job_for_more_devices_than_there_are_is_left_to_others(
    house: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither blocks the queue nor makes an idle supervisor think that it has gone deaf."""
    dataset = uuid.uuid4()
    with transaction(house.engine) as session:
        session.add(Dataset(id=dataset, name="set", upload={}, state=State.succeeded))
    large, small = house.submit(dataset, gpus=2), house.submit(dataset)
    run = Run(house, "suicidal", monkeypatch)

    assert house.ended(small).state == "failed"
    run.thread.join(20.0)
    assert (house.state(large), run.supervisor.work_waits()) == ("queued", False)
    run.end()
    house.settings = house.settings.model_copy(update={"devices": "cpu,cpu"})
    both = Run(house, "suicidal", monkeypatch)
    assert house.ended(large).state == "failed"
    both.end()


def test_a_child_that_does_not_advance_is_killed_and_counted(
    house: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(house)
    run = Run(house, "silent", monkeypatch)
    house.until(job, lambda row: row.attempts_without_progress >= 1)
    run.end()

    assert "stalled" in house.reasons(job)


def test_a_deaf_child_is_cancelled_by_force(house: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    job = queued(house)
    run = Run(house, "silent", monkeypatch)
    house.until(job, lambda row: row.state == State.running)
    with transaction(house.engine) as session:
        work.request_cancel(session, Job, job)

    assert house.ended(job, 10.0).state == "cancelled"
    run.end()


def test_a_drain_puts_back_what_runs_and_does_not_count(house: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    job = queued(house)
    run = Run(house, "obedient", monkeypatch)
    house.until(job, lambda row: row.state == State.running)
    run.end()

    row = house.job(job)
    assert (row.state, row.attempts_without_progress) == ("queued", 0)
    assert house.reasons(job) == ["drained"]


def test_the_end_of_a_child_forked_ahead_concerns_nobody(
    house: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of the one at work is renewed all the same, and the next errand finds somebody."""
    job = queued(house)
    run = Run(house, "obedient", monkeypatch)
    house.until(job, lambda row: row.state == State.running)
    spare = eventually(lambda: zygotes_children(os.getpid(), "denll-spare"), what="a child forked ahead")[0]
    os.kill(spare, signal.SIGKILL)
    eventually(lambda: not alive(spare), what="its end")
    killed = house.job(job).heartbeat_at
    assert killed is not None
    house.until(job, lambda row: row.heartbeat_at is not None and row.heartbeat_at > killed + timedelta(seconds=0.5))
    run.end()
    assert house.reasons(job) == ["drained"]

    after = Run(house, "obedient", monkeypatch)
    house.until(job, lambda row: row.state == State.running)
    after.end()


def test_a_lost_claim_ends_the_child_and_writes_nothing(house: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    job = queued(house)
    run = Run(house, "silent", monkeypatch)
    first = house.until(job, lambda row: row.state == State.running)
    with transaction(house.engine) as session:
        assert attempt.requeue(session, job, first.fence, counts=False, limit=3, reason="test") == "queued"
        second = attempt.claim(session, "another", 60.0)
    run.end()

    assert second is not None
    row = house.job(job)
    assert (row.state, row.fence, row.lease_owner) == ("running", second.fence, "another")
    assert house.reasons(job) == ["test"]


def test_F10_a_child_is_stopped_before_its_lease_ends_when_the_database_stays_away(
    house: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written then; the row is put back by whoever reaches the database after the lease."""
    job = queued(house)
    settings = house.settings = house.settings.model_copy(update={"stall_s": 60.0, "database_grace_s": 1.5})
    run = Run(house, "obedient", monkeypatch)
    running = house.until(job, lambda row: row.state == State.running)
    pid = eventually(lambda: next(iter(zygotes_children(os.getpid())), None), what="the child")
    gone = time.monotonic()

    def away(engine: Engine, **_: object) -> None:
        raise DatabaseUnavailable("The test took it away.")

    monkeypatch.setattr(corridor, "transaction", away)
    eventually(lambda: not alive(pid), seconds=settings.lease_s, what="the end of the child")
    assert time.monotonic() - gone < settings.lease_s
    run.end()
    row = house.job(job)
    assert (row.state, row.fence) == ("running", running.fence)
    eventually(lambda: reaped(house), seconds=10.0, what="the end of the lease")
    assert house.state(job) == "queued"


def reaped(house: ServiceHarness) -> int:
    with transaction(house.engine) as session:
        return attempt.reap(session, 3)
