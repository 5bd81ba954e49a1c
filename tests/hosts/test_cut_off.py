"""Several hosts share the work; losing the network of one only delays its job."""

from __future__ import annotations

import time
import uuid

import pytest
from sqlalchemy import select, text

from app.db.clock import now
from app.db.session import transaction
from app.db.tables import Dataset, Job, State, Worker
from tests.hosts.conftest import KNOBS, MultiHostHarness
from tests.hosts.network import Host
from tests.servers import eventually
from tests.worker.harness import alive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,  # new interfaces make a browser drop its connections, to whatever address
]


def busy_hosts(harness: MultiHostHarness) -> set[str]:
    """Names of the hosts that hold a lease now."""
    with transaction(harness.engine, read_only=True) as session:
        jobs = session.scalars(select(Job).where(Job.state == State.running)).all()
    return {host for job in jobs if (host := harness.host_of(job))}


def all_hosts_work(harness: MultiHostHarness) -> None:
    """Two jobs at once are done by two hosts."""
    jobs = [harness.begin() for _ in harness.network.hosts]
    names = {host.name for host in harness.network.hosts}
    eventually(lambda: busy_hosts(harness) == names, seconds=30.0, what=f"work on each host\n{harness.logs()}")
    for job in jobs:
        assert harness.succeeded(job).attempt == 1


def lease_holds(harness: MultiHostHarness, job: Job) -> bool:
    """Whether this claim is still good, by the database's clock."""
    claim = select(Job.id).where(Job.id == job.id, Job.fence == job.fence, Job.lease_expires_at > now())
    with transaction(harness.engine, read_only=True) as session:
        return session.scalar(claim) is not None


def cut_during_a_query(harness: MultiHostHarness, host: Host, job: Job) -> None:
    """Cut the network after the database received a query of supervisor and child: the replies are lost."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE client_addr = :at AND wait_event_type = 'Lock'"
        " AND clock_timestamp() - query_start > interval '0.2 seconds'"  # acknowledgements may come that late
    )
    with transaction(harness.engine) as holding:
        holding.execute(select(Job.id).where(Job.id == job.id).with_for_update())
        with harness.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            address = {"at": host.address}
            eventually(
                lambda: connection.scalar(waiting, address) == 2, seconds=20.0, what="supervisor and child waiting"
            )
        host.cut()


def test_jobs_are_distributed_over_the_hosts(harness: MultiHostHarness) -> None:
    all_hosts_work(harness)

    supervisor = harness.client.get("/readyz").json()["checks"]["supervisor"]
    assert (supervisor["status"], supervisor["running"], supervisor["devices"]) == ("ok", 2, 2)


@pytest.mark.parametrize("moment", ["between queries", "during a query"])
def test_F04_a_host_cut_off_stops_by_itself_another_finishes_and_it_comes_back(
    harness: MultiHostHarness, moment: str
) -> None:
    job_id = harness.begin()
    job, host = harness.in_the_middle(job_id)
    supervisor = harness.supervisors[host.name]
    child = harness.child(supervisor)
    if moment == "during a query":
        cut_during_a_query(harness, host, job)
    else:
        host.cut()
    try:
        eventually(lambda: not alive(child), seconds=float(str(KNOBS["lease_s"])), what="the end of the child")
        assert lease_holds(harness, job), "two hosts may have worked on one job"
        done = harness.succeeded(job_id)
        event_ids = [event.id for event in harness.history(job_id)]
    finally:
        host.join()

    assert (done.attempt, harness.reasons(job_id)) == (2, ["lease_expired"])
    eventually(lambda: is_registered(harness, host), seconds=30.0, what=f"a heartbeat of {host.name}\n{harness.logs()}")
    all_hosts_work(harness)
    after = harness.job(job_id)
    assert (after.state, after.fence, after.finished_at) == (done.state, done.fence, done.finished_at)
    assert [event.id for event in harness.history(job_id)] == event_ids
    assert len(harness.models(job_id)) == 1
    assert supervisor.poll() is None


def is_registered(harness: MultiHostHarness, host: Host) -> bool:
    ours = Worker.id.startswith(f"{host.name}:")
    with transaction(harness.engine, read_only=True) as session:
        return session.scalar(select(Worker.id).where(ours, Worker.heartbeat_at > now(-2.0))) is not None


def test_a_host_cut_off_inside_a_transaction_holds_no_row_for_long(harness: MultiHostHarness) -> None:
    """The server keeps its lock, and the reaper skips locked rows."""
    dataset, host = uuid.uuid4(), harness.network.hosts[0]
    with transaction(harness.engine) as session:
        session.add(Dataset(id=dataset, name="waits", upload={}))
    holder = harness.start("tests.hosts.holder", within=host.within)
    eventually(lambda: "held\n" in harness.logs() or holder.poll() is not None, seconds=30.0, what="the holder")
    assert holder.poll() is None, harness.logs()
    host.cut()
    cut_at = time.monotonic()
    try:
        eventually(lambda: state_of(harness, dataset) == State.queued, seconds=20.0, what="the data set queued again")
    finally:
        host.join()
        holder.kill()
        holder.wait()
    assert time.monotonic() - cut_at < 2 * float(str(KNOBS["lease_s"]))


def state_of(harness: MultiHostHarness, dataset: uuid.UUID) -> State:
    with transaction(harness.engine, read_only=True) as session:
        return session.scalars(select(Dataset.state).where(Dataset.id == dataset)).one()
