"""Connections that hang, lag or break while both their ends are well, through a proxy of the tests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from sqlalchemy.engine import make_url

from app.db.tables import State
from tests import servers
from tests.faults.conftest import FaultHarness
from tests.faults.proxy import Proxy, proxy
from tests.faults.test_api_faults import api, body
from tests.faults.test_database_faults import LIMIT_S, timed
from tests.servers import eventually

LAG_S = 0.1
# A renewal is four responses, and waits for the child's transactions: up to a second and a half with this lag.
LEASE = {"lease_s": 6.0, "database_grace_s": 5.0}


@dataclass(frozen=True)
class Service:
    """A service that reaches its broker, and Postgres where that is its database, through proxies."""

    harness: FaultHarness
    broker: Proxy
    database: Proxy | None

    def all_proxies(self) -> list[Proxy]:
        return [self.broker, *([self.database] if self.database else [])]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(servers.redis_server())
        broker = stack.enter_context(proxy("127.0.0.1", redis.port))
        url, database = "", None
        if request.param == "postgres":
            direct = make_url(stack.enter_context(servers.fresh_database(request.getfixturevalue("postgres_server"))))
            database = stack.enter_context(proxy(direct.host or "127.0.0.1", direct.port or 5432))
            through = direct.set(host="127.0.0.1", port=database.port)
            url = through.render_as_string(hide_password=False)
        redis_url = redis.url.replace(f":{redis.port}/", f":{broker.port}/")
        harness = FaultHarness(tmp_path_factory.mktemp("service"), url, redis_url, **LEASE)
        stack.callback(harness.close)
        harness.make_ready()
        yield Service(harness, broker, database)


class Outcome(NamedTuple):
    """What became of a job in whose middle a fault happened, and of the next one."""

    attempts: int
    reasons: list[str]  # why the job changed state
    next_state: State


UNAFFECTED = Outcome(1, [], State.succeeded)


def outcome(harness: FaultHarness, fault: Callable[[], contextlib.AbstractContextManager[object]]) -> Outcome:
    """Train while a fault lasts, until the job has written one more checkpoint in it."""
    job = harness.begin()
    started = harness.in_the_middle(job)
    assert started.state == "running"
    with fault():
        harness.until(job, lambda row: (row.checkpoint_step or 0) > (started.checkpoint_step or 0))
    attempts = harness.succeeded(job).attempt
    after = harness.ended(harness.submit(harness.data, epochs=1))
    return Outcome(attempts, harness.reasons(job), after.state)


def test_F08_training_goes_on_when_the_connection_to_the_broker_breaks(service: Service) -> None:
    def break_it() -> contextlib.AbstractContextManager[object]:
        assert service.broker.break_connections() > 0
        return contextlib.nullcontext()

    assert outcome(service.harness, break_it) == UNAFFECTED


def test_F08_training_goes_on_while_the_broker_does_not_answer(service: Service) -> None:
    assert outcome(service.harness, service.broker.hanging) == UNAFFECTED


def test_training_goes_on_over_connections_that_lag(service: Service) -> None:
    @contextlib.contextmanager
    def lag() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for one in service.all_proxies():
                stack.enter_context(one.lagging(LAG_S))
            yield

    assert outcome(service.harness, lag) == UNAFFECTED


@pytest.mark.parametrize("service", ["postgres"], indirect=True)
def test_F10_training_goes_on_when_the_connections_to_the_database_break(service: Service) -> None:
    assert service.database is not None
    database = service.database

    def break_them() -> contextlib.AbstractContextManager[object]:
        assert database.break_connections() > 0
        return contextlib.nullcontext()

    assert outcome(service.harness, break_them) == UNAFFECTED


@pytest.mark.alone
@pytest.mark.parametrize("service", ["postgres"], indirect=True)
def test_F09_requests_are_refused_in_time_while_the_database_cannot_be_reached(service: Service) -> None:
    assert service.database is not None
    harness, database = service.harness, service.database
    with api(harness) as (client, _), ThreadPoolExecutor(16) as pool:
        job = body(harness.data)
        assert client.post("/jobs", json=job).status_code == 202
        with database.hanging():
            hung = [pool.submit(timed, lambda: client.post("/jobs", json=job)) for _ in range(16)]
            live, took = timed(lambda: client.get("/livez"))
            answers = [one.result() for one in hung]
        assert (live.status_code, took < 1.0) == (200, True)
        for response, seconds in answers:
            assert response.status_code == 503, response.text
            assert int(response.headers["Retry-After"]) > 0
            assert seconds < LIMIT_S
        eventually(lambda: client.post("/jobs", json=job).status_code == 202, what="its recovery")

        database.break_connections()  # those of its pool; the next request finds out
        broken = time.monotonic()
        eventually(lambda: client.post("/jobs", json=job).status_code == 202, what="its recovery")
        assert time.monotonic() - broken < LIMIT_S
