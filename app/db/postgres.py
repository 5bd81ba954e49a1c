"""Connections to Postgres that give up on a server that does not respond.

The limits of the server do not help when its processes are stopped, and those of TCP do not while its kernel still
acknowledges. So the client waits a limited time for each response, and then closes the connection: the server rolls
back what was not committed. After that no connection is tried for a moment, and whoever needs one fails at once.
Otherwise requests that wait for each other's threads and connections would add up their waits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout as WaitTimeout  # what `Connection.wait` is documented to raise
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

T = TypeVar("T")

DRIVER = "postgresql+limited"
UNREACHABLE_S = 1.0  # how long no connection is tried after one failed


class LimitedConnection(psycopg.Connection[Any]):
    """A connection on which every response must arrive in time.

    Attributes:
        response_timeout_s: How long a response may take; None is without limit.
        on_timeout: Called when one took longer, after the connection was closed.
    """

    response_timeout_s: float | None = None
    on_timeout: Callable[[], None] | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        try:
            return super().wait(gen, interval, self.response_timeout_s if timeout is None else timeout)
        except WaitTimeout as error:
            self.close()
            if self.on_timeout is not None:
                self.on_timeout()
            raise psycopg.OperationalError("the server did not respond in time") from error

    @contextlib.contextmanager
    def limited_to(self, seconds: float) -> Iterator[None]:
        """Wait at most this long for each response within the context."""
        usual, self.response_timeout_s = self.response_timeout_s, seconds
        try:
            yield
        finally:
            self.response_timeout_s = usual


class LimitedDialect(PGDialect_psycopg):
    """SQLAlchemy's dialect for psycopg with such connections.

    `connect` takes two arguments besides those of psycopg: `response_timeout_s`, and `ping_timeout_s` for the check of
    a pooled connection before it is used.
    """

    supports_statement_cache = True

    _ping_timeout_s = float("inf")
    _next_try = float("-inf")  # by `time.monotonic()`

    def connect(self, *args: Any, response_timeout_s: float, ping_timeout_s: float, **kwargs: Any) -> Any:
        if time.monotonic() < self._next_try:
            raise psycopg.OperationalError("the server did not respond a moment ago")
        self._ping_timeout_s = ping_timeout_s
        try:
            connection = LimitedConnection.connect(*args, **kwargs)
        except psycopg.OperationalError:
            self._pause()
            raise
        connection.response_timeout_s = response_timeout_s
        connection.on_timeout = self._pause
        return connection

    def do_ping(self, dbapi_connection: Any) -> bool:
        with dbapi_connection.limited_to(self._ping_timeout_s):
            return bool(super().do_ping(dbapi_connection))  # type: ignore[no-untyped-call]

    def _pause(self) -> None:
        self._next_try = time.monotonic() + UNREACHABLE_S


def register() -> None:
    """Make `postgresql+limited://` known to SQLAlchemy."""
    registry.register(DRIVER.replace("+", "."), __name__, LimitedDialect.__name__)
