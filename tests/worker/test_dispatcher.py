"""What the dispatcher notifies of, and how often: counted in the queue of a Redis without a consumer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.clock import now
from app.db.session import transaction
from app.db.tables import Worker
from app.notifier import Notifier
from tests.servers import RedisServer
from tests.worker.harness import ServiceHarness, opened
from worker.dispatcher import Dispatcher


@pytest.fixture
def harness(tmp_path: Path, own_redis: RedisServer) -> Iterator[ServiceHarness]:
    with opened(tmp_path, "", own_redis.url, renotify_s=60.0) as harness:
        yield harness


@pytest.fixture
def notifier(harness: ServiceHarness) -> Iterator[Notifier]:
    notifier = Notifier(harness.settings)
    yield notifier
    notifier.close()


def test_each_supervisor_is_notified_of_a_job_that_only_one_may_be_able_to_take(
    harness: ServiceHarness, notifier: Notifier
) -> None:
    """A notification reaches one of them, which need not be the one with two devices."""
    with transaction(harness.engine) as session:
        for number, devices in enumerate((1, 2, 1)):
            session.add(Worker(id=f"host-{number}", kind="supervisor", device="cuda", devices=devices))
        session.add(Worker(id="checks data sets", kind="supervisor"))
        session.add(Worker(id="gone", kind="supervisor", device="cuda", devices=1, heartbeat_at=now(-100.0)))
    dispatcher = Dispatcher(harness.settings, harness.engine, notifier)
    dispatcher.run_once()
    assert notifier.count_pending("jobs") == 0

    harness.submit(harness.dataset(), gpus=2)
    dispatcher.run_once()
    dispatcher.run_once()  # too soon to notify again

    assert (notifier.count_pending("jobs"), notifier.count_pending("datasets")) == (3, 0)
