"""Databases and brokers for every test: real ones, one server a session, one database a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers

# Files that take longest, most of them waiting for processes. They begin first (`make test` keeps this order), so that
# at the end no process works through one of them alone.
LONGEST = (
    "tests/faults/",
    "tests/worker/test_work_machine.py",
    "tests/hosts/",
    "tests/worker/test_ranks.py",
    "tests/e2e/",
    "tests/contracts/test_commands_run.py",
    "tests/ml/test_laws.py",
    "tests/ml/test_memory.py",
)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: spinning threads starve other processes


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Put the longest files first; within a file the order stays."""
    items.sort(
        key=lambda item: next((n for n, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))
    )


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
