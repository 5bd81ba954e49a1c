"""INV1-INV3 under every order of events: two workers, clients that cancel, a clock that jumps."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import integers, sampled_from
from sqlalchemy import Engine, delete, event, func, select, update

from app import work
from app.db.clock import now
from app.db.session import connect, transaction
from app.db.tables import ENDED, Dataset, Job, JobEvent, Model, State
from app.jobs import attempt, events
from app.settings import Settings
from tests.tables import create_tables

LIMIT = 3
WORKERS = ("one", "two")


class JobLifecycle(RuleBasedStateMachine):
    """Whatever workers, dispatchers, clients and clocks do: no job is lost, none ends twice, none has two models."""

    engine: ClassVar[Engine]
    reached: ClassVar[set[State]]  # the ends that any example has come to

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[uuid.UUID] = []
        self.held: dict[str, list[tuple[uuid.UUID, int]]] = {worker: [] for worker in WORKERS}  # what each believes
        self.holds: dict[uuid.UUID, int] = {}  # job -> fence of the one claim that is good
        self.expired: set[uuid.UUID] = set()
        self.final: dict[uuid.UUID, State] = {}

    @initialize()
    def begin(self) -> None:
        with transaction(self.engine) as session:
            self.dataset = uuid.uuid4()
            session.add(Dataset(id=self.dataset, name="set", upload={}, state=State.succeeded))

    @rule(priority=integers(0, 1))
    def create(self, priority: int) -> None:
        job = uuid.uuid4()
        with transaction(self.engine) as session:
            session.add(Job(id=job, dataset_id=self.dataset, request={}, spec={}, priority=priority))
        self.jobs.append(job)

    @rule(worker=sampled_from(WORKERS))
    def claim(self, worker: str) -> None:
        with transaction(self.engine) as session:
            claim = attempt.claim(session, worker, 30.0)
        if claim is None:
            assert all(self.state(job) != State.queued for job in self.jobs)
            return
        assert claim.id not in self.holds
        self.holds[claim.id] = claim.fence
        self.expired.discard(claim.id)  # requeued by its holder after the lease had ended: this is a new lease
        self.held[worker].append((claim.id, claim.fence))

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=sampled_from(WORKERS), which=integers(0, 5))
    def heartbeat(self, worker: str, which: int) -> None:
        for job, fence in self.believed(worker, which):
            with transaction(self.engine) as session:
                order = attempt.renew_lease(session, job, fence, 30.0)
            good = self.holds.get(job) == fence
            assert (order == "fenced_off") == (not good)
            if good:
                self.expired.discard(job)

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=sampled_from(WORKERS), which=integers(0, 5), step=integers(0, 5))
    def checkpoint(self, worker: str, which: int, step: int) -> None:
        for job, fence in self.believed(worker, which):
            with transaction(self.engine) as session:
                written = attempt.record_checkpoint(
                    session, job, fence, step, f"attempt-{fence}/checkpoints/step-{step}"
                )
            assert written == (self.holds.get(job) == fence)

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=sampled_from(WORKERS), which=integers(0, 5), ends=sampled_from(["succeed", "fail"]))
    def complete(self, worker: str, which: int, ends: str) -> None:
        """Also replayed and late: the same claim may complete any number of times."""
        for job, fence in self.believed(worker, which):
            with transaction(self.engine) as session:
                if ends == "succeed":
                    done = attempt.publish(session, job, fence, metrics={}, model=model_row(self.dataset))
                else:
                    done = attempt.fail(session, job, fence, {"code": "x", "title": "x", "detail": "x", "hint": "x"})
            assert done == (self.holds.get(job) == fence)
            if done:
                self.holds.pop(job)

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=sampled_from(WORKERS), which=integers(0, 5), counts=sampled_from([True, False]))
    def requeue(self, worker: str, which: int, counts: bool) -> None:
        for job, fence in self.believed(worker, which):
            with transaction(self.engine) as session:
                state = attempt.requeue(session, job, fence, counts=counts, limit=LIMIT, reason="test")
            assert (state is not None) == (self.holds.get(job) == fence)
            if state is not None:
                self.holds.pop(job)

    @precondition(lambda self: self.holds)
    @rule(which=integers(0, 5))
    def clock_jumps(self, which: int) -> None:
        """A lease ends, as if time had passed."""
        job = list(self.holds)[which % len(self.holds)]
        with transaction(self.engine) as session:
            session.execute(update(Job).where(Job.id == job).values(lease_expires_at=now(-1.0)))
        self.expired.add(job)

    @rule()
    def reap(self) -> None:
        with transaction(self.engine) as session:
            count = attempt.reap(session, LIMIT)
        gone = self.expired & self.holds.keys()
        assert count == len(gone)
        for job in gone:
            self.holds.pop(job)
        self.expired.clear()

    @precondition(lambda self: self.jobs)
    @rule(which=integers(0, 5))
    def cancel(self, which: int) -> None:
        job = self.jobs[which % len(self.jobs)]
        ended = self.state(job) in ENDED
        with transaction(self.engine) as session:
            state = work.request_cancel(session, Job, job)
            if state == State.cancelled:
                events.record_state(session, job, state, reason="cancelled")
        assert (state is None) == ended

    @rule()
    def notify(self) -> None:
        with transaction(self.engine) as session:
            work.mark_notified(session, Job, 0.0)

    @invariant()
    def terminal_states_never_change(self) -> None:
        """INV2, INV3."""
        if not self.jobs:
            return
        with transaction(self.engine, read_only=True) as session:
            columns = select(Job.id, Job.state, Job.finished_at, Job.error).where(Job.id.in_(self.jobs))
            rows = {row.id: row for row in session.execute(columns)}
            models: dict[Any, int] = dict(
                session.execute(
                    select(Model.job_id, func.count()).where(Model.job_id.in_(self.jobs)).group_by(Model.job_id)
                ).all()
            )
        assert rows.keys() == set(self.jobs)
        for job, row in rows.items():
            assert self.final.setdefault(job, row.state) == row.state if job in self.final else True
            if row.state in ENDED:
                self.final[job] = row.state
                self.reached.add(row.state)
                assert row.finished_at is not None
            assert (row.state == State.running) == (job in self.holds)
            assert models.get(job, 0) == (1 if row.state == State.succeeded else 0)
            assert row.state != State.failed or row.error["code"]

    def teardown(self) -> None:
        """INV1: one more worker ends every job, and each history says so once."""
        if not self.jobs:
            return
        with transaction(self.engine) as session:
            session.execute(update(Job).where(Job.state == State.running).values(lease_expires_at=now(-1.0)))
            attempt.reap(session, LIMIT)
        while True:
            with transaction(self.engine) as session:
                claim = attempt.claim(session, "last", 30.0)
                if claim is None:
                    break
                attempt.succeed(session, claim.id, claim.fence, metrics={})
        with transaction(self.engine, read_only=True) as session:
            states = session.execute(select(Job.id, Job.state).where(Job.id.in_(self.jobs))).all()
            done = session.execute(
                select(JobEvent.job_id, func.count())
                .where(JobEvent.kind == "done", JobEvent.job_id.in_(self.jobs))
                .group_by(JobEvent.job_id)
            )
            counts = dict(done.all())
        assert all(state in ENDED for _, state in states)
        assert all(self.final.get(job, state) == state for job, state in states)
        assert counts == dict.fromkeys(self.jobs, 1)
        with transaction(self.engine) as session:  # rows of earlier examples would make every later query slower
            for table in (JobEvent, Model, Job):
                session.execute(delete(table))

    def believed(self, worker: str, which: int) -> Iterator[tuple[uuid.UUID, int]]:
        claims = self.held[worker]
        if claims:
            yield claims[which % len(claims)]

    def state(self, job: uuid.UUID) -> State:
        with transaction(self.engine, read_only=True) as session:
            return session.execute(select(Job.state).where(Job.id == job)).scalar_one()


def model_row(dataset: uuid.UUID) -> dict[str, Any]:
    return {
        "id": uuid.uuid4(),
        "dataset_id": dataset,
        "method": "ce",
        "network": "small",
        "classes": ["a", "b"],
        "digest": "sha256:0",
        "size_bytes": 1,
        "metrics": {},
        "spec": {},
    }


def walk(database_url: str, folder: Path, examples: int) -> set[State]:
    """Run so many examples, each of which asserts after every step; the ends that jobs have come to."""
    engine = connect(Settings(data_dir=folder, database_url=database_url))
    if not database_url:  # nothing here survives a loss of power, and waiting for the disk took most of the time
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    create_tables(engine)
    steps = settings(
        max_examples=examples,
        stateful_step_count=50,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    reached: set[State] = set()
    machine = type("Machine", (JobLifecycle,), {"engine": engine, "reached": reached})
    run_state_machine_as_test(machine, settings=steps)
    engine.dispose()
    return reached


def test_every_job_ends_once_whatever_two_workers_and_the_clock_do(database_url: str, tmp_path: Path) -> None:
    assert walk(database_url, tmp_path, examples=20) == set(ENDED)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_job_ends_once_over_ten_thousand_steps(tmp_path: Path) -> None:
    assert walk("", tmp_path, examples=200) == set(ENDED)
