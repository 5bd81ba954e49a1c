"""Authentication by API key and the scopes that routes require. Keys are created and revoked in `app.keys`.

A valid key is cached for a few seconds, and for as long as the database is unavailable, so that predictions need no
database. When a key was last used is written in batches, by no request. Where people log in, a request without a key
may show a session instead (`app.http.sessions`).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, NamedTuple

from fastapi import Depends
from sqlalchemy import Engine, or_, select, update
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.db import session as db
from app.db.audit import Actor
from app.db.clock import now
from app.db.tables import ApiKey
from app.errors import DatabaseUnavailable, Forbidden, Unauthenticated
from app.http.rate_limit import RateLimiter
from app.settings import SCOPES, Scope, Settings

if TYPE_CHECKING:
    from app.http.sessions import SessionCache

KEY_FRESH_S = 5.0  # how long a revoked key may still work in another API process
MOST_CACHED = 1024
LOOPBACK = "loopback"  # who acts without a key


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


ANYBODY = Principal("", frozenset(SCOPES), "")
BOOTSTRAP = Principal("admin", frozenset(SCOPES), "admin")


class ValidKey(NamedTuple):
    """A key that was looked up; times are `time.monotonic()`, which no change of the clock moves."""

    principal: Principal
    looked_up: float
    expires_at: datetime | None
    expires: float


def digest(key: str) -> str:
    """The SHA-256 of a key in hexadecimal, as it is stored."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class KeyCache:
    """The keys that this process has validated lately."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        admin = settings.admin_key
        self._requests_per_s = settings.key_requests_per_s
        self._bootstrap = digest(admin.get_secret_value()) if admin else None
        self._engine = engine
        self._keys: dict[str, ValidKey] = {}
        self._last_used: dict[str, float] = {}  # by the id of a key: what is not written yet
        self._lock = threading.Lock()

    async def principal(self, authorization: str | None, before_unknown: Callable[[], None]) -> Principal:
        """The caller that this Authorization header names.

        Args:
            authorization: The header.
            before_unknown: Called for a caller without a key that this process knows, before anything is looked up.

        Raises:
            Unauthenticated: A key is required, and this is no valid one.
        """
        if self._bootstrap is None:
            before_unknown()
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            before_unknown()
            raise unauthenticated("Send an API key as Authorization: Bearer <key>.")
        hashed = digest(key.strip())
        if hmac.compare_digest(hashed, self._bootstrap):
            return BOOTSTRAP
        valid = self._keys.get(hashed)
        if valid is None:
            before_unknown()
        if valid is None or time.monotonic() - valid.looked_up > KEY_FRESH_S:
            valid = await run_in_threadpool(self._look_up, hashed, valid)
        if valid is None:
            raise unauthenticated("This key is unknown or revoked.")
        now_s = time.monotonic()
        if valid.expires_at is not None and now_s >= valid.expires:
            raise unauthenticated(f"This key expired at {valid.expires_at.isoformat(timespec='seconds')}.")
        self._last_used[valid.principal.id] = now_s
        return valid.principal

    def note_use(self, key_id: str) -> None:
        """Note that a key was used now, or that a person was here."""
        self._last_used[key_id] = time.monotonic()

    def clear(self) -> None:
        """Empty the cache: after a key was revoked, keys are looked up in the database again."""
        with self._lock:
            self._keys.clear()

    def write_last_used(self) -> None:
        """Write when keys were last used; while the database is unavailable that is left to the next call."""
        uses, self._last_used = self._last_used, {}
        if not uses:
            return
        try:
            with db.transaction(self._engine) as session:
                for key_id, used in sorted(uses.items()):
                    at = now(used - time.monotonic())
                    older = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < at)  # than what others wrote
                    session.execute(
                        update(ApiKey)
                        .where(ApiKey.id == uuid.UUID(key_id), older)
                        .values(last_used_at=at)
                        .execution_options(synchronize_session=False)
                    )
        except DatabaseUnavailable:
            self._last_used = uses | self._last_used

    async def keep_last_used(self, period_s: float) -> None:
        """Call `write_last_used` every `period_s` seconds until it is cancelled."""
        while True:
            await asyncio.sleep(period_s)
            await run_in_threadpool(self.write_last_used)

    def _look_up(self, hashed: str, cached: ValidKey | None) -> ValidKey | None:
        """The key with this hash; the cached one while the database is unavailable."""
        columns = (
            ApiKey.id,
            ApiKey.name,
            ApiKey.scopes,
            ApiKey.requests_per_s,
            ApiKey.expires_at,
            now().label("now"),
        )
        try:
            with db.transaction(self._engine, read_only=True) as session:
                conditions = (ApiKey.key_sha256 == hashed, ApiKey.revoked_at.is_(None))
                row = session.execute(select(*columns).where(*conditions)).one_or_none()
        except DatabaseUnavailable:
            if cached is not None:
                return cached
            raise
        valid = None
        if row is not None:
            looked_up = time.monotonic()
            expires = looked_up + (row.expires_at - row.now).total_seconds() if row.expires_at else float("inf")
            per_s = row.requests_per_s or self._requests_per_s
            principal = Principal(str(row.id), frozenset(row.scopes), row.name, per_s)
            valid = ValidKey(principal, looked_up, row.expires_at, expires)
        with self._lock:
            if len(self._keys) >= MOST_CACHED:
                self._keys.clear()
            if valid is not None:
                self._keys[hashed] = valid
            else:
                self._keys.pop(hashed, None)
        return valid


def unauthenticated(detail: str) -> Unauthenticated:
    return Unauthenticated(detail, headers={"WWW-Authenticate": 'Bearer realm="denll"'})


class RequireScope:
    """The scope that a route requires, None for public routes.

    As a dependency it only declares the scope; `routing.Route` checks it before it reads the body.
    """

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        return None

    async def check(self, request: Request) -> None:
        """Store the caller as `request.state.principal`.

        Raises:
            Unauthenticated: There is no valid key, and no valid session.
            RateLimited: The caller, or the address without a valid key, sends too many requests.
            CsrfTokenRequired: A session is to change something without its token.
            Forbidden: The caller lacks the scope.
        """
        if self.scope is None:
            return
        principal = await authenticate(request)
        principal.require(self.scope)
        request.state.principal = principal


async def authenticate(request: Request) -> Principal:
    """The caller: by the Authorization header, or without one by the cookie of a session; see `RequireScope.check`."""
    state = request.app.state
    limiter: RateLimiter = state.rate_limiter
    sessions: SessionCache | None = state.session_cache
    before_unknown = functools.partial(limiter.limit_address, request)
    authorization = request.headers.get("authorization")
    session_id = None if authorization is not None or sessions is None else sessions.cookie.read(request)
    if sessions is None or session_id is None:
        principal: Principal = await state.key_cache.principal(authorization, before_unknown)
    else:
        principal = await sessions.principal(session_id, before_unknown)
    if principal.requests_per_s:
        limiter.limit_key(request, principal.id, principal.requests_per_s)
    if sessions is not None and session_id is not None:
        sessions.check_csrf(request, session_id)
    return principal


def clear_caches(request: Request) -> None:
    """After callers lost a right: look all of them up again in this process; others do so within `KEY_FRESH_S`."""
    state = request.app.state
    state.key_cache.clear()
    if state.session_cache is not None:
        state.session_cache.clear()


OPEN, READ, TRAIN, PREDICT, ADMIN = (
    Depends(RequireScope(None)),
    Depends(RequireScope("read")),
    Depends(RequireScope("train")),
    Depends(RequireScope("predict")),
    Depends(RequireScope("admin")),
)


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(_principal)]


def key_id(principal: Principal) -> uuid.UUID | None:
    """The id of the caller's key or person; None for the loopback user and the bootstrap key."""
    return uuid.UUID(principal.id) if principal.id not in {"", "admin"} else None


def actor_of(request: Request) -> Actor:
    """The caller, for the audit table."""
    principal: Principal = request.state.principal
    return Actor(principal.name or LOOPBACK, key_id(principal), request.state.request_id)


async def _actor(request: Request) -> Actor:
    return actor_of(request)


By = Annotated[Actor, Depends(_actor)]
