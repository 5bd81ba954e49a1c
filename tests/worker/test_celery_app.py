"""A supervisor as a process: what it does when no notification reaches it any more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.session import transaction
from app.db.tables import Worker
from tests.servers import RedisServer, eventually
from tests.worker.harness import ServiceHarness, opened
from worker.supervisor.celery_app import EXIT_STALLED

STALLED_S = 1.0


@pytest.fixture
def harness(tmp_path: Path, own_redis: RedisServer) -> Iterator[ServiceHarness]:
    knobs = {"stalled_consumer_s": STALLED_S, "worker_heartbeat_s": 0.1, "warm_fork_server": False}
    with opened(tmp_path, "", own_redis.url, **knobs) as harness:
        yield harness


def test_a_supervisor_without_notifications_exits_when_work_waits_and_only_then(harness: ServiceHarness) -> None:
    """Nobody notifies: for the supervisor that looks as if Celery had stopped consuming after a reconnect."""
    process = harness.supervisor()

    def last_beat() -> datetime | None:
        with transaction(harness.engine, read_only=True) as session:
            return session.scalar(select(Worker.heartbeat_at))

    first = eventually(last_beat, what="its first heartbeat")
    eventually(lambda: ((last_beat() or first) - first).total_seconds() > 2 * STALLED_S, what="the time limit")
    assert process.poll() is None

    job = harness.submit(harness.dataset())
    assert process.wait(20) == EXIT_STALLED
    assert (harness.state(job), harness.job(job).attempt) == ("queued", 0)
