"""A database that hangs: its processes are stopped, while their kernel still accepts and acknowledges."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import psycopg
import pytest

from tests import servers
from tests.faults.conftest import FaultHarness
from tests.faults.test_api_faults import api, body
from tests.servers import eventually
from tests.worker.harness import alive, children, opened

LIMIT_S = 5.0  # DEG1
Freeze = Callable[[], contextlib.AbstractContextManager[None]]


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[str]:
    """A server that no other test uses."""
    with servers.postgres("127.0.0.2") as url:
        yield url


@contextlib.contextmanager
def frozen_postgres(url: str) -> Iterator[None]:
    """Every process of the server is stopped."""
    with psycopg.connect(servers.plain(url), autocommit=True) as connection:
        (folder,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    postmaster = int((Path(folder) / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)  # first: it starts no others then
    stopped = [postmaster, *children(postmaster)]
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def locked_sqlite(path: str) -> Iterator[None]:
    """A transaction that writes and does not end, as that of a process that was stopped inside it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Freeze]]:
    """An empty database, and what makes it hang."""
    if request.param == "sqlite":
        path = str(tmp_path / "test.sqlite")
        yield f"sqlite:///{path}", lambda: locked_sqlite(path)
        return
    server = request.getfixturevalue("own_postgres")
    with servers.fresh_database(server) as url:
        yield url, lambda: frozen_postgres(server)


def timed(send: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    response = send()
    return response, time.monotonic() - started


@pytest.mark.alone
def test_F09_DEG1_a_database_that_hangs_is_a_503_in_time_and_recovers(
    tmp_path: Path, database: tuple[str, Freeze]
) -> None:
    url, freeze = database
    clients = 64 if url.startswith("postgresql") else 20  # each connection to SQLite waits for the lock by itself
    with (
        opened(tmp_path, url, "redis://127.0.0.1:1/0") as harness,
        api(harness) as (client, _),
        ThreadPoolExecutor(65) as pool,
    ):
        dataset = harness.dataset()
        job = body(dataset)
        assert client.post("/jobs", json=job).status_code == 202
        with freeze():
            writes = [pool.submit(timed, lambda: client.post("/jobs", json=job)) for _ in range(clients)]
            beats = []
            while not all(write.done() for write in writes):
                beats.append(timed(lambda: client.get("/livez")))
            later = timed(lambda: client.post("/jobs", json=job))
        hung = [write.result() for write in writes] + [later]

        for response, seconds in hung:
            assert response.status_code == 503, response.text
            assert int(response.headers["Retry-After"]) > 0
            assert seconds < LIMIT_S
        assert {response.status_code for response, _ in beats} == {200}
        assert max(seconds for _, seconds in beats) < 1.0
        eventually(lambda: client.post("/jobs", json=job).status_code == 202, seconds=5.0, what="its recovery")


@pytest.mark.alone
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_F10_a_database_that_hangs_ends_the_attempt_in_time_and_the_job_resumes(
    tmp_path: Path, database: tuple[str, Freeze], own_redis: servers.RedisServer
) -> None:
    url, freeze = database
    harness = FaultHarness(tmp_path, url, own_redis.url, statement_timeout_s=0.5, connect_timeout_s=0.5)
    with contextlib.closing(harness):
        harness.make_ready()
        dispatcher, supervisor = harness.processes
        job = harness.begin()
        harness.in_the_middle(job)
        child = harness.child(supervisor)
        frozen_at = time.monotonic()
        with freeze():
            eventually(lambda: not alive(child), what="the end of the child")
            ended_after = time.monotonic() - frozen_at

        done = harness.succeeded(job)
        assert ended_after < harness.settings.lease_s
        assert done.attempt == 2
        assert supervisor.poll() is None
        assert dispatcher.poll() is None
