"""Engines and transactions. Each process creates one engine; a transaction is committed where it was opened."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Literal

from sqlalchemy import Engine, create_engine, event, exc, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from app.db import postgres, schema
from app.errors import DatabaseUnavailable
from app.settings import Settings

__all__ = ["Engine", "Session", "connect", "transaction", "wait_until_reachable"]

UNAVAILABLE_RETRY_S = 5
MARGIN_S = 0.5  # the client waits this much longer than a statement may take: the server's limit comes first
SERIALIZATION_FAILURES = {"40001", "40P01"}
Process = Literal["api", "supervisor", "child", "dispatcher", "inference", "command"]
# One for each thread that uses the database: a supervisor works, renews its lease and writes its heartbeat at once. The
# threads of an API process share DENLL_POOL_SIZE.
CONNECTIONS: dict[Process, int] = {"supervisor": 3, "child": 1, "dispatcher": 1, "inference": 1, "command": 1}


def connect(settings: Settings, process: Process = "api") -> Engine:
    """An engine that fails within seconds when the database is unavailable (DEG1) and enforces foreign keys.

    Args:
        settings: Address and time limits.
        process: What this process is, which decides how many connections it opens at most.
    """
    url = make_url(settings.database)
    pool: dict[str, Any] = {
        "pool_size": CONNECTIONS.get(process, settings.pool_size),
        "max_overflow": 0,
        "pool_timeout": settings.pool_timeout_s,
        "execution_options": {"schema": schema.SchemaCheck()},
    }
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": settings.statement_timeout_s}, **pool)
        event.listen(engine, "connect", _sqlite_pragmas)
        event.listen(engine, "begin", _sqlite_begin)
        return engine
    postgres.register()
    return create_engine(
        url.set(drivername=postgres.DRIVER),
        connect_args=_postgres_timeouts(settings),
        pool_pre_ping=True,
        pool_recycle=300,
        **pool,
    )


def _postgres_timeouts(settings: Settings) -> dict[str, Any]:
    """How long client and server wait for each other. Neither is informed when a host or its network fails."""
    timeout_ms = int(settings.statement_timeout_s * 1000)
    limits = {
        "timezone": "UTC",
        "statement_timeout": timeout_ms,
        "lock_timeout": timeout_ms,
        # A client that is cut off inside a transaction holds its row locks until the server gives up on it, by default
        # after two hours. They must be free well before the lease ends, so that another worker can take over the job.
        "idle_in_transaction_session_timeout": int(settings.lease_s * 1000 / 3),
    }
    return {
        "connect_timeout": max(2, int(settings.connect_timeout_s)),
        "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
        "tcp_user_timeout": timeout_ms + 1000,  # for data that is not acknowledged,
        "keepalives_idle": max(1, int(settings.statement_timeout_s)),  # and for a response that never arrives
        "keepalives_interval": 1,
        "keepalives_count": 2,
        "response_timeout_s": settings.statement_timeout_s + MARGIN_S,
        "ping_timeout_s": settings.connect_timeout_s,
    }


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver would begin deferred transactions
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Any) -> None:
    # A deferred transaction that reads, then writes, fails at once with "database is locked", whatever the timeout.
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("read_only") else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def transaction(engine: Engine, *, read_only: bool = False) -> Iterator[Session]:
    """A transaction: it commits at the end and rolls back on an error.

    Args:
        read_only: On SQLite it then takes no write lock.

    Raises:
        DatabaseUnavailable: The database cannot be reached, has a schema that this code does not know, or all
            connections are in use.
    """
    check: schema.SchemaCheck = engine.get_execution_options()["schema"]
    bind: Any = engine.execution_options(read_only=True) if read_only else engine
    with _unavailable_as_a_problem(), Session(bind, expire_on_commit=False) as session, session.begin():
        check.run(session)
        yield session


@contextlib.contextmanager
def _unavailable_as_a_problem() -> Iterator[None]:
    try:
        yield
    except exc.DBAPIError as error:
        if _is_unavailable(error):
            raise DatabaseUnavailable(
                "The database does not answer; try again in a few seconds.", retry_after_s=UNAVAILABLE_RETRY_S
            ) from error
        raise
    except exc.TimeoutError as error:
        raise DatabaseUnavailable(
            "All database connections are busy; try again in a few seconds.", retry_after_s=UNAVAILABLE_RETRY_S
        ) from error


def _is_unavailable(error: exc.DBAPIError) -> bool:
    """Whether the database was unavailable or overloaded, as opposed to a wrong statement."""
    if error.connection_invalidated or isinstance(error, exc.OperationalError):
        return True
    state = getattr(error.orig, "sqlstate", None) or ""
    return state in SERIALIZATION_FAILURES or state[:2] in {"08", "53", "57"}


def wait_until_reachable(engine: Engine, seconds: float) -> None:
    """Retry with back-off until the database responds, whatever its schema (DEG6).

    Raises:
        DatabaseUnavailable: It did not within so many seconds.
    """
    deadline, pause = time.monotonic() + seconds, 0.1
    while True:
        try:
            with _unavailable_as_a_problem(), engine.execution_options(read_only=True).connect() as connection:
                connection.execute(text("SELECT 1"))
        except DatabaseUnavailable:
            if time.monotonic() + pause > deadline:
                raise
        else:
            return
        time.sleep(pause)
        pause = min(2.0, pause * 2)
