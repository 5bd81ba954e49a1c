"""Databases and brokers for every test: real ones, one server a session, one database a test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests import servers

# Files that take longest, most of them waiting for processes. They begin first (`make test` keeps this order), so that
# at the end no process works through one of them alone.
LONGEST = (
    "tests/faults/",
    "tests/e2e/test_main_job.py",  # starts services of its own, before the one that the rest shares
    "tests/e2e/test_page.py",  # names its data sets; the documents, on the same service, may use the names again
    "tests/e2e/",
    "tests/hosts/",
    "tests/worker/test_ranks.py",
    "tests/worker/test_work_machine.py",
    "tests/contracts/test_commands_run.py",
    "tests/ml/test_laws.py",
    "tests/ml/test_memory.py",
)

ONE_SERVICE = ("tests/faults/", "tests/e2e/")  # the files of such a folder share a service, which is slow to start

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: spinning threads starve other processes

settings.register_profile("tests", deadline=None)  # an example takes as long as the tests beside it make it take
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Put the longest files first; within a file the order stays."""
    items.sort(
        key=lambda item: next((n for n, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))
    )


class ByService(LoadFileScheduling):  # type: ignore[misc]
    """Tests of one file, or of one service, run in one process."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in ONE_SERVICE if nodeid.startswith(folder)), super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByService:
    return ByService(config, log)


def pytest_collection_finish() -> None:
    """Search for garbage less often, and never in what was imported: it took a fifth of the CPU of the API's tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a Postgres server on which tests may create databases."""
    with servers.postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, once on SQLite and once on Postgres."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.sqlite'}"
        return
    with servers.fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[str]:
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
        return
    with servers.redis_server() as server:
        yield server.url


@pytest.fixture
def redis_url(shared_redis: str) -> str:
    """A Redis that tests share; it holds only notifications, so no test needs it empty."""
    return shared_redis


@pytest.fixture
def own_redis() -> Iterator[servers.RedisServer]:
    """A Redis of the test's own, to kill and to empty."""
    with servers.redis_server() as server:
        yield server
