"""Several hosts share the work, and one whose network is gone costs a job nothing but time."""

from __future__ import annotations

import time
import uuid

import pytest
from sqlalchemy import select, text

from app.db.clock import now
from app.db.session import transaction
from app.db.tables import Dataset, Job, State, Worker
from tests.hosts.conftest import KNOBS, Spread
from tests.hosts.network import Host
from tests.servers import eventually
from tests.worker.harness import alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def at_work(spread: Spread) -> set[str]:
    """Names of the hosts that hold a lease now."""
    with transaction(spread.engine, read_only=True) as session:
        jobs = session.scalars(select(Job).where(Job.state == State.running)).all()
    return {host for job in jobs if (host := spread.host_of(job))}


def all_hosts_work(spread: Spread) -> None:
    """Two jobs at once are done by two hosts."""
    jobs = [spread.begin() for _ in spread.network.hosts]
    names = {host.name for host in spread.network.hosts}
    eventually(lambda: at_work(spread) == names, seconds=30.0, what=f"work on each host\n{spread.logs()}")
    for job in jobs:
        assert spread.succeeded(job).attempt == 1


def lease_holds(spread: Spread, job: Job) -> bool:
    """Whether this claim is still good, by the database's clock."""
    held = select(Job.id).where(Job.id == job.id, Job.fence == job.fence, Job.lease_expires_at > now())
    with transaction(spread.engine, read_only=True) as session:
        return session.scalar(held) is not None


def cut_while_an_answer_is_owed(spread: Spread, host: Host, job: Job) -> None:
    """Pull the cable when the database has acknowledged a question of supervisor and child: the answers are lost."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE client_addr = :at AND wait_event_type = 'Lock'"
        " AND clock_timestamp() - query_start > interval '0.2 seconds'"  # acknowledgements may come that late
    )
    with transaction(spread.engine) as holding:
        holding.execute(select(Job.id).where(Job.id == job.id).with_for_update())
        with spread.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as looking:
            asked = {"at": host.address}
            eventually(lambda: looking.scalar(waiting, asked) == 2, seconds=20.0, what="supervisor and child waiting")
        host.cut()


def test_jobs_spread_over_the_hosts(spread: Spread) -> None:
    all_hosts_work(spread)

    supervisor = spread.client.get("/readyz").json()["checks"]["supervisor"]
    assert (supervisor["status"], supervisor["running"], supervisor["devices"]) == ("ok", 2, 2)


@pytest.mark.parametrize("moment", ["between two questions", "while an answer is owed"])
def test_F04_a_host_cut_off_stops_by_itself_another_finishes_and_it_comes_back(spread: Spread, moment: str) -> None:
    job_id = spread.begin()
    job, host = spread.in_the_middle(job_id)
    supervisor = spread.supervisors[host.name]
    child = spread.child(supervisor)
    if moment == "while an answer is owed":
        cut_while_an_answer_is_owed(spread, host, job)
    else:
        host.cut()
    try:
        eventually(lambda: not alive(child), seconds=float(str(KNOBS["lease_s"])), what="the end of the child")
        assert lease_holds(spread, job), "two hosts may have worked on one job"
        done = spread.succeeded(job_id)
        told = [event.id for event in spread.history(job_id)]
    finally:
        host.join()

    assert (done.attempt, spread.reasons(job_id)) == (2, ["lease_expired"])
    eventually(lambda: heard_of(spread, host), seconds=30.0, what=f"a heartbeat of {host.name}\n{spread.logs()}")
    all_hosts_work(spread)
    after = spread.job(job_id)
    assert (after.state, after.fence, after.finished_at) == (done.state, done.fence, done.finished_at)
    assert [event.id for event in spread.history(job_id)] == told
    assert len(spread.models(job_id)) == 1
    assert supervisor.poll() is None


def heard_of(spread: Spread, host: Host) -> bool:
    ours = Worker.id.startswith(f"{host.name}:")
    with transaction(spread.engine, read_only=True) as session:
        return session.scalar(select(Worker.id).where(ours, Worker.heartbeat_at > now(-2.0))) is not None


def test_a_host_cut_off_inside_a_transaction_holds_no_row_for_long(spread: Spread) -> None:
    """Its lock outlives it in the server, and whoever puts work back passes over rows that are locked."""
    dataset, host = uuid.uuid4(), spread.network.hosts[0]
    with transaction(spread.engine) as session:
        session.add(Dataset(id=dataset, name="waits", upload={}))
    holder = spread.start("tests.hosts.holder", within=host.within)
    eventually(lambda: "held\n" in spread.logs(), seconds=30.0, what="the holder")
    host.cut()
    began = time.monotonic()
    try:
        eventually(lambda: state_of(spread, dataset) == State.queued, seconds=20.0, what="the data set put back")
    finally:
        host.join()
        holder.kill()
        holder.wait()
    assert time.monotonic() - began < 2 * float(str(KNOBS["lease_s"]))


def state_of(spread: Spread, dataset: uuid.UUID) -> State:
    with transaction(spread.engine, read_only=True) as session:
        return session.scalars(select(Dataset.state).where(Dataset.id == dataset)).one()
