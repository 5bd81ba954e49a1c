"""Callers, and a cache of those that a process has looked up lately: by key in `access`, by session in `sessions`.

A valid caller is cached for a few seconds, and for as long as the database is unavailable, so that predictions need no
database. When a key or a session was last used is written in batches, by no request.
"""

from __future__ import annotations

import abc
import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Engine, Row, Select, or_, update
from sqlalchemy.orm import InstrumentedAttribute
from starlette.concurrency import run_in_threadpool

from app.db import session as db
from app.db.clock import now
from app.errors import DatabaseUnavailable, Forbidden
from app.setting_types import Scope
from app.settings import Settings

FRESH_S = 5.0  # how long a revoked key, or a session that has ended, may still work in another API process
MOST_CACHED = 1024


class Principal(NamedTuple):
    """The caller: `id` is "" for the loopback user, "admin" for the bootstrap key, else that of the key or person."""

    id: str
    scopes: frozenset[str]
    name: str  # of the key or person; "" for the loopback user
    requests_per_s: float = 0.0  # 0: any number

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the caller has this scope or `admin`."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"This needs a key or a login with the scope {scope!r}.")


class ValidCaller(NamedTuple):
    """A caller that was looked up; times without a date are `time.monotonic()`, which no change of the clock moves."""

    principal: Principal
    looked_up: float
    expires_at: datetime | None
    expires: float
    check: float = float("inf")  # when the login provider is to be asked again


def digest(secret: str) -> str:
    """The SHA-256 of a key or of a session's id in hexadecimal, as it is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class CallerCache(abc.ABC):
    """The callers that this process has validated lately, by the hash of what they show.

    Args:
        settings: The rate of callers who have none of their own.
        engine: The database.
        id_column: What a use is noted by.
        last_used_column: Where the latest use is written.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        id_column: InstrumentedAttribute[Any],
        last_used_column: InstrumentedAttribute[datetime | None],
    ) -> None:
        self._id_column, self._last_used_column = id_column, last_used_column
        self._requests_per_s = settings.key_requests_per_s
        self._engine = engine
        self._callers: dict[str, ValidCaller] = {}
        self._last_used: dict[str, float] = {}  # by `id_column`, as text: what is not written yet
        self._lock = threading.Lock()

    @abc.abstractmethod
    def _select(self, hashed: str) -> Select[Any]:
        """The query for the caller with this hash: `id`, `name`, `scopes`, `requests_per_s`, `expires_at`, `now`."""

    def _name(self, row: Row[Any]) -> str:
        """What the caller of a row is called."""
        return str(row.name)

    def _valid(self, row: Row[Any], looked_up: float) -> ValidCaller:
        expires = looked_up + (row.expires_at - row.now).total_seconds() if row.expires_at else float("inf")
        per_s = row.requests_per_s or self._requests_per_s
        principal = Principal(str(row.id), frozenset(row.scopes), self._name(row), per_s)
        return ValidCaller(principal, looked_up, row.expires_at, expires)

    async def find(self, hashed: str, before_unknown: Callable[[], None]) -> ValidCaller | None:
        """The caller with this hash, which may have expired meanwhile; None for one that is unknown or revoked.

        Args:
            hashed: `digest` of what the caller shows.
            before_unknown: Called for one that this process does not know, before it is looked up.
        """
        valid = self._callers.get(hashed)
        if valid is None:
            before_unknown()
        if valid is None or time.monotonic() - valid.looked_up > FRESH_S:
            valid = await run_in_threadpool(self._look_up, hashed, valid)
        return valid

    def note_use(self, used_id: str) -> None:
        """Note a use now, by a value of `id_column` as text."""
        self._last_used[used_id] = time.monotonic()

    def clear(self) -> None:
        """Empty the cache: after a caller lost a right, all are looked up in the database again."""
        with self._lock:
            self._callers.clear()

    def look_up_again(self, hashed: str) -> None:
        """Have the next request look this caller up."""
        with self._lock:
            if (valid := self._callers.get(hashed)) is not None:
                self._callers[hashed] = valid._replace(looked_up=float("-inf"))

    def write_last_used(self) -> None:
        """Write what was noted; while the database is unavailable that is left to the next call."""
        uses, self._last_used = self._last_used, {}
        if not uses:
            return
        column, parse_id = self._last_used_column, self._id_column.type.python_type
        try:
            with db.transaction(self._engine) as session:
                for used_id, used in sorted(uses.items()):
                    at = now(used - time.monotonic())
                    older = or_(column.is_(None), column < at)  # than what others wrote
                    session.execute(
                        update(self._id_column.class_)
                        .where(self._id_column == parse_id(used_id), older)
                        .values({column: at})
                        .execution_options(synchronize_session=False)
                    )
        except DatabaseUnavailable:
            self._last_used = uses | self._last_used

    async def keep_last_used(self, period_s: float) -> None:
        """Call `write_last_used` every `period_s` seconds until it is cancelled."""
        while True:
            await asyncio.sleep(period_s)
            await run_in_threadpool(self.write_last_used)

    def _look_up(self, hashed: str, cached: ValidCaller | None) -> ValidCaller | None:
        """The caller with this hash; the cached one while the database is unavailable."""
        try:
            with db.transaction(self._engine, read_only=True) as session:
                row = session.execute(self._select(hashed)).one_or_none()
        except DatabaseUnavailable:
            if cached is not None:
                return cached
            raise
        valid = None if row is None else self._valid(row, time.monotonic())
        with self._lock:
            if len(self._callers) >= MOST_CACHED:
                self._callers.clear()
            if valid is not None:
                self._callers[hashed] = valid
            else:
                self._callers.pop(hashed, None)
        return valid
