"""What the dispatcher rings for, and how often, seen in the queue of a Redis that nobody listens to."""

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
def house(tmp_path: Path, own_redis: RedisServer) -> Iterator[ServiceHarness]:
    with opened(tmp_path, "", own_redis.url, renotify_s=60.0) as made:
        yield made


@pytest.fixture
def broker(house: ServiceHarness) -> Iterator[Notifier]:
    made = Notifier(house.settings)
    yield made
    made.close()


def test_each_supervisor_hears_of_a_job_that_only_one_may_be_able_to_take(
    house: ServiceHarness, broker: Notifier
) -> None:
    """A bell reaches one of them; whether it is the one with two devices, nobody knows."""
    with transaction(house.engine) as session:
        for number, devices in enumerate((1, 2, 1)):
            session.add(Worker(id=f"host-{number}", kind="supervisor", device="cuda", devices=devices))
        session.add(Worker(id="checks data sets", kind="supervisor"))
        session.add(Worker(id="gone", kind="supervisor", device="cuda", devices=1, heartbeat_at=now(-100.0)))
    dispatcher = Dispatcher(house.settings, house.engine, broker)
    dispatcher.look()
    assert broker.count_pending("jobs") == 0

    house.submit(house.dataset(), gpus=2)
    dispatcher.look()
    dispatcher.look()  # too soon to ring again

    assert (broker.count_pending("jobs"), broker.count_pending("datasets")) == (3, 0)
