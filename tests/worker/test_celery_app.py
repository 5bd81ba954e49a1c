"""A supervisor as a process: what it does when no bell reaches it any more."""

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
from worker.supervisor.celery_app import EXIT_DEAF

DEAF_S = 1.0


@pytest.fixture
def house(tmp_path: Path, own_redis: RedisServer) -> Iterator[ServiceHarness]:
    knobs = {"stalled_consumer_s": DEAF_S, "worker_heartbeat_s": 0.1, "warm_fork_server": False}
    with opened(tmp_path, "", own_redis.url, **knobs) as made:
        yield made


def test_a_supervisor_that_hears_no_bell_leaves_when_work_waits_and_only_then(house: ServiceHarness) -> None:
    """Nobody rings: for Celery that is as if it had stopped consuming after a reconnect."""
    process = house.supervisor()

    def seen() -> datetime | None:
        with transaction(house.engine, read_only=True) as session:
            return session.scalar(select(Worker.heartbeat_at))

    first = eventually(seen, what="its first sign of life")
    eventually(
        lambda: ((seen() or first) - first).total_seconds() > 2 * DEAF_S,
        what="a silence longer than stalled_consumer_s",
    )
    assert process.poll() is None

    job = house.submit(house.dataset())
    assert process.wait(20) == EXIT_DEAF
    assert (house.state(job), house.job(job).attempt) == ("queued", 0)
